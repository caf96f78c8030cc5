// The tiled loops of NT-Xent, compiled once per capability. No std:: templates here: an inline function that is
// compiled with wider vectors must not be the copy that the linker keeps for everybody.
#include "nt_xent_tiles.h"

#include "sslfast/multiply.h"

namespace sslfast {
namespace {

constexpr int block_rows = 24;
constexpr int panels_per_tile = 4;

template <typename T>
constexpr int tile_columns = panels_per_tile * panel_columns<T>;

// s_ij = z_i . z_j / temperature for one block and one tile; -infinity for j = i and for padding.
template <typename T>
inline void score_tile(const NtXentProblem<T>& problem, int64_t first_row, int64_t first_column, T* tile) {
  constexpr int panel = panel_columns<T>;
  constexpr int columns = tile_columns<T>;
  for (int p = 0; p < panels_per_tile; ++p) {
    const T* packed = problem.panels + (first_column + p * panel) * problem.depth;
    for (int row = 0; row < block_rows; row += group_rows) {
      multiply<false>(problem.rows + (first_row + row) * problem.width, problem.width, 1, packed, panel, problem.depth,
                      tile + row * columns + p * panel, columns);
    }
  }
  for (int k = 0; k < block_rows * columns; k += Vector<T>::lanes) {
    store(tile + k, load(tile + k) * problem.inverse_temperature);
  }
  const T nothing = -static_cast<T>(__builtin_inf());
  for (int row = 0; row < block_rows; ++row) {
    const int64_t own = first_row + row - first_column;
    if (own >= 0 && own < columns) tile[row * columns + own] = nothing;
    for (int64_t column = problem.count - first_column; column < columns; ++column) {
      tile[row * columns + column] = nothing;
    }
  }
}

template <typename T>
inline int64_t partner_of(const NtXentProblem<T>& problem, int64_t row) {
  const int64_t half = problem.count / 2;
  return row < half ? row + half : row - half;
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
void forward(const NtXentProblem<T>& problem, int64_t index, T* lse, double* row_loss) {
  using V = typename Vector<T>::type;
  constexpr int columns = tile_columns<T>;
  constexpr int lanes = Vector<T>::lanes;
  alignas(64) T tile[block_rows * columns];
  T highest[block_rows];
  double sum[block_rows];
  double positive[block_rows];
  for (int row = 0; row < block_rows; ++row) {
    highest[row] = -static_cast<T>(__builtin_inf());
    sum[row] = 0;
    positive[row] = 0;
  }
  const int64_t first_row = index * block_rows;
  const int rows = static_cast<int>(smaller(block_rows, problem.count - first_row));
  for (int64_t first_column = 0; first_column < problem.count; first_column += columns) {
    score_tile(problem, first_row, first_column, tile);
    for (int row = 0; row < rows; ++row) {
      const T* scores = tile + row * columns;
      V best = load(scores);
      for (int k = lanes; k < columns; k += lanes) {
        const V next = load(scores + k);
        best = next > best ? next : best;
      }
      const T tile_highest = largest_of<T>(best);
      if (tile_highest > highest[row]) {
        // The first time, sum is 0 and the factor exp(-infinity) is 0.
        sum[row] *= __builtin_exp(static_cast<double>(highest[row]) - tile_highest);
        highest[row] = tile_highest;
      }
      V part{};
      for (int k = 0; k < columns; k += lanes) part += exponential(load(scores + k) - highest[row]);
      sum[row] += sum_of<T>(part);
      const int64_t partner = partner_of(problem, first_row + row) - first_column;
      if (partner >= 0 && partner < columns) positive[row] = scores[partner];
    }
  }
  for (int row = 0; row < rows; ++row) {
    const double value = highest[row] + __builtin_log(sum[row]);
    lse[first_row + row] = static_cast<T>(value);
    row_loss[first_row + row] = value - positive[row];
  }
}

template <typename T>
void backward(const NtXentProblem<T>& problem, int64_t index, T scale, T* gradient) {
  constexpr int columns = tile_columns<T>;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int panel = panel_columns<T>;
  alignas(64) T tile[block_rows * columns];
  const int64_t first_row = index * block_rows;
  const int rows = static_cast<int>(smaller(block_rows, problem.count - first_row));
  for (int64_t k = 0; k < block_rows * problem.width; k += lanes) store(gradient + k, typename Vector<T>::type{});
  for (int64_t first_column = 0; first_column < problem.count; first_column += columns) {
    score_tile(problem, first_row, first_column, tile);
    for (int row = 0; row < rows; ++row) {
      T* weights = tile + row * columns;
      const T own = problem.lse[first_row + row];
      for (int k = 0; k < columns; k += lanes) {
        const auto scores = load(weights + k);
        store(weights + k, exponential(scores - own) + exponential(scores - load(problem.lse + first_column + k)));
      }
      const int64_t partner = partner_of(problem, first_row + row) - first_column;
      if (partner >= 0 && partner < columns) weights[partner] -= 2;
    }
    const int64_t used = smaller(columns, problem.count - first_column);
    for (int64_t d = 0; d < problem.width; d += panel) {
      for (int row = 0; row < block_rows; row += group_rows) {
        multiply<true>(tile + row * columns, columns, 1, problem.rows + first_column * problem.width + d, problem.width,
                       used, gradient + row * problem.width + d, problem.width);
      }
    }
  }
  for (int64_t k = 0; k < block_rows * problem.width; k += lanes) store(gradient + k, load(gradient + k) * scale);
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
NtXentKernels<T> nt_xent_kernels() {
  return {block_rows, tile_columns<T>, panel_columns<T>, &forward<T>, &backward<T>};
}

template NtXentKernels<float> nt_xent_kernels<float>();
template NtXentKernels<double> nt_xent_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
