// The gradients of a log-sum-exp over a bank of columns, compiled once per capability (no std:: templates: see
// nt_xent_tiles.cpp). A tile of scores has a row per column of the bank, so that its products read the bank as it is
// stored (D, m): it is copied tile by tile, never transposed.
#include "score_bank_tiles.h"

#include "sslfast/multiply.h"

namespace sslfast {
namespace {

// Divides the tile and common depths, as group_rows of 12 does not.
constexpr int bank_group = SSLFAST_VECTOR_BITS == 512 ? 8 : 4;
constexpr int tile_columns = 64;
// A strip of the rows meets a tile at a time.
constexpr int panels_per_strip = 4;

template <typename T>
constexpr int strip_rows = panels_per_strip * panel_columns<T>;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
int64_t scratch_of(const BankProblem<T>& problem) {
  return tile_columns * (problem.height + strip_rows<T> + problem.width);
}

// (height, tile_columns) of the bank, zeros where it has nothing.
template <typename T>
inline void copy_tile(const BankProblem<T>& problem, int64_t first, int64_t used, T* tile) {
  constexpr int patch = 16;
  const T* source = problem.columns + first * problem.column_stride;
  for (int64_t start = 0; start < problem.depth; start += patch) {
    const int64_t stop = smaller(start + patch, problem.depth);
    if (problem.column_stride == 1) {
      for (int64_t d = start; d < stop; ++d) {
        __builtin_memcpy(tile + d * tile_columns, source + d * problem.depth_stride, used * sizeof(T));
      }
      continue;
    }
    for (int64_t column = 0; column < used; ++column) {
      for (int64_t d = start; d < stop; ++d) {
        tile[d * tile_columns + column] = source[column * problem.column_stride + d * problem.depth_stride];
      }
    }
  }
  for (int64_t d = 0; d < problem.height; ++d) {
    for (int64_t column = d < problem.depth ? used : 0; column < tile_columns; ++column) {
      tile[d * tile_columns + column] = 0;
    }
  }
}

// The gradient of every score, in place of the scores: (used, count) of rows [first_row, ...).
template <typename T>
inline void weigh(const BankProblem<T>& problem, int64_t first_row, int64_t count, int64_t used, T* scores) {
  using V = typename Vector<T>::type;
  const V nothing = splat(-static_cast<T>(__builtin_inf()));
  for (int64_t column = 0; column < used; ++column) {
    T* line = scores + column * strip_rows<T>;
    for (int64_t k = 0; k < count; k += Vector<T>::lanes) {
      const V score = load(line + k) * problem.inverse_temperature;
      const V weight =
          exponential(at_most_zero(score - load(problem.lse + first_row + k))) * load(problem.grad + first_row + k);
      // Where all of a row's scores are -infinity, so is its log-sum-exp.
      store(line + k, score == nothing ? V{} : weight);
    }
  }
}

template <typename T>
void backward(const BankProblem<T>& problem, int64_t index, T* scratch, T* of_rows) {
  constexpr int panel = panel_columns<T>;
  constexpr int strip = strip_rows<T>;
  const int64_t first_column = index * tile_columns;
  const int64_t used = smaller(tile_columns, problem.column_count - first_column);
  T* columns = scratch;
  T* scores = columns + tile_columns * problem.height;
  T* gradient = scores + tile_columns * strip;
  copy_tile(problem, first_column, used, columns);
  if (problem.of_columns) __builtin_memset(gradient, 0, tile_columns * problem.width * sizeof(T));
  for (int64_t first_row = 0; first_row < problem.padded_rows; first_row += strip) {
    const int64_t count = smaller(strip, problem.padded_rows - first_row);
    for (int64_t row = 0; row < count; row += panel) {
      for (int64_t column = 0; column < used; column += bank_group) {
        multiply<false, bank_group>(columns + column, 1, tile_columns,
                                    problem.row_panels + (first_row + row) * problem.depth, panel, problem.depth,
                                    scores + column * strip + row, strip);
      }
    }
    weigh(problem, first_row, count, used, scores);
    for (int64_t row = 0; row < count; row += panel) {
      for (int64_t d = 0; d < problem.height; d += bank_group) {
        multiply<true, bank_group>(columns + d * tile_columns, tile_columns, 1, scores + row, strip, used,
                                   of_rows + d * problem.padded_rows + first_row + row, problem.padded_rows);
      }
    }
    if (!problem.of_columns) continue;
    const int64_t rows = smaller(strip, problem.row_count - first_row);
    for (int64_t d = 0; d < problem.width; d += panel) {
      for (int64_t column = 0; column < used; column += bank_group) {
        multiply<true, bank_group>(scores + column * strip, strip, 1, problem.rows + first_row * problem.width + d,
                                   problem.width, rows, gradient + column * problem.width + d, problem.width);
      }
    }
  }
  if (!problem.of_columns) return;
  for (int64_t column = 0; column < used; ++column) {
    T* target = problem.of_columns + (first_column + column) * problem.depth;
    for (int64_t d = 0; d < problem.depth; ++d) {
      target[d] = gradient[column * problem.width + d] * problem.inverse_temperature;
    }
  }
}

template <typename T>
void finish(const BankProblem<T>& problem, int64_t index, const T* of_rows, int64_t chunks, T* gradient) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  const int64_t first = index * lanes, size = problem.height * problem.padded_rows;
  const int64_t used = smaller(lanes, problem.row_count - first);
  for (int64_t d = 0; d < problem.depth; ++d) {
    V sum{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      sum += load(of_rows + chunk * size + d * problem.padded_rows + first);
    }
    sum *= problem.inverse_temperature;
    for (int64_t lane = 0; lane < used; ++lane) gradient[(first + lane) * problem.depth + d] = sum[lane];
  }
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
BankKernels<T> score_bank_kernels() {
  return {tile_columns, panel_columns<T>, bank_group, Vector<T>::lanes, &scratch_of<T>, &backward<T>, &finish<T>};
}

template BankKernels<float> score_bank_kernels<float>();
template BankKernels<double> score_bank_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
