// The tiled loops of the log-sum-exp of scores, compiled once per capability (no std:: templates: see
// nt_xent_tiles.cpp).
#include "score_lse_tiles.h"

#include "sslfast/multiply.h"

namespace sslfast {
namespace {

// A multiple of group_rows: so many rows of a tile are held at a time.
constexpr int strip_rows = 24;
// A tile of columns is read from the cache for all strips of a block.
constexpr int block_rows = 10 * strip_rows;
constexpr int panels_per_tile = 4;

template <typename T>
constexpr int tile_columns = panels_per_tile * panel_columns<T>;

template <typename T>
constexpr T nothing = -static_cast<T>(__builtin_inf());

// Scores of one strip and one tile (its rows come divided by the temperature); -infinity where a row meets no column.
template <typename T>
inline void score_tile(const ScoreProblem<T>& problem, int64_t first_row, int rows, int64_t first_column, T* tile) {
  constexpr int panel = panel_columns<T>;
  constexpr int columns = tile_columns<T>;
  for (int p = 0; p < panels_per_tile; ++p) {
    const T* packed = problem.panels + (first_column + p * panel) * problem.depth;
    for (int row = 0; row < rows; row += group_rows) {
      multiply<false>(problem.rows + (first_row + row) * problem.width, problem.width, 1, packed, panel, problem.depth,
                      tile + row * columns + p * panel, columns);
    }
  }
  for (int row = 0; row < rows; ++row) {
    const int64_t own = first_row + row + problem.diagonal - first_column;
    if (own >= 0 && own < columns) tile[row * columns + own] = nothing<T>;
    for (int64_t column = problem.column_count - first_column; column < columns; ++column) {
      tile[row * columns + column] = nothing<T>;
    }
  }
}

// Whether a column of the tile may have the row's label.
template <typename T>
inline bool may_equal(const ScoreProblem<T>& problem, int64_t row, int64_t first_column) {
  if (problem.row_labels == nullptr) return false;
  const int64_t index = first_column / tile_columns<T>;
  const auto label = problem.row_labels[row];
  return label >= problem.lowest_label[index] && label <= problem.highest_label[index];
}

// Calls body(offset of a vector in the tile's row, which of its lanes have the row's label).
template <typename T, typename Body>
inline void for_each_equal(const ScoreProblem<T>& problem, int64_t row, int64_t first_column, Body body) {
  using Labels = typename Vector<T>::labels;
  const Labels own = problem.row_labels[row] - Labels{};
  for (int k = 0; k < tile_columns<T>; k += Vector<T>::lanes) {
    Labels theirs;
    __builtin_memcpy(&theirs, problem.column_labels + first_column + k, sizeof(theirs));
    body(k, theirs == own);
  }
}

// A log-sum-exp as its terms go by.
template <typename T>
struct RunningSum {
  T highest = nothing<T>;
  double sum = 0;

  void raise(T candidate) {
    if (candidate > highest) {
      // The first time, sum is 0 and the factor exp(-infinity) is 0.
      sum *= __builtin_exp(static_cast<double>(highest) - candidate);
      highest = candidate;
    }
  }
  T value() const { return highest == nothing<T> && sum == 0 ? highest : static_cast<T>(highest + __builtin_log(sum)); }
};

// What a row has met so far.
template <typename T>
struct Running {
  RunningSum<T> all, equal;
};

// One strip against one tile of columns.
template <typename T>
inline void forward_tile(const ScoreProblem<T>& problem, int64_t first_row, int rows, int64_t first_column, T* tile,
                         Running<T>* running) {
  using V = typename Vector<T>::type;
  constexpr int columns = tile_columns<T>;
  constexpr int lanes = Vector<T>::lanes;
  const V lowest = splat(nothing<T>);
  score_tile(problem, first_row, rows, first_column, tile);
  for (int row = 0; row < rows; ++row) {
    RunningSum<T>& all = running[row].all;
    RunningSum<T>& equal = running[row].equal;
    const T* scores = tile + row * columns;
    V best = load(scores);
    for (int k = lanes; k < columns; k += lanes) {
      const V next = load(scores + k);
      best = next > best ? next : best;
    }
    all.raise(largest_of<T>(best));
    V part{};
    // A row that has met nothing yet: exp(-infinity - -infinity) would be NaN.
    const T highest = all.highest == nothing<T> ? T(0) : all.highest;
    for (int k = 0; k < columns; k += lanes) part += exponential(load(scores + k) - highest);
    all.sum += sum_of<T>(part);
    if (!may_equal(problem, first_row + row, first_column)) continue;
    best = lowest;
    for_each_equal<T>(problem, first_row + row, first_column, [&](int k, auto same) {
      const V next = same ? load(scores + k) : lowest;
      best = next > best ? next : best;
    });
    equal.raise(largest_of<T>(best));
    if (equal.highest == nothing<T>) continue;
    part = V{};
    for_each_equal<T>(problem, first_row + row, first_column, [&](int k, auto same) {
      part += exponential((same ? load(scores + k) : lowest) - equal.highest);
    });
    equal.sum += sum_of<T>(part);
  }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
void forward(const ScoreProblem<T>& problem, int64_t index, T* lse_all, T* lse_equal) {
  constexpr int columns = tile_columns<T>;
  alignas(64) T tile[strip_rows * columns];
  Running<T> running[block_rows];
  const int64_t first_row = index * problem.block;
  const int64_t rows = smaller(problem.block, problem.row_count - first_row);
  for (int64_t first_column = 0; first_column < problem.column_count; first_column += columns) {
    for (int64_t strip = 0; strip < rows; strip += strip_rows) {
      forward_tile(problem, first_row + strip, static_cast<int>(smaller(strip_rows, rows - strip)), first_column, tile,
                   running + strip);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    lse_all[first_row + row] = running[row].all.value();
    lse_equal[first_row + row] = running[row].equal.value();
  }
}

// The gradient of every score of one strip and one tile, in place of the scores.
template <typename T>
inline void weight_tile(const ScoreProblem<T>& problem, int64_t first_row, int rows, int64_t first_column,
                        const ScoreSide<T>& row_side, const ScoreSide<T>& column_side, T* tile) {
  using V = typename Vector<T>::type;
  constexpr int columns = tile_columns<T>;
  constexpr int lanes = Vector<T>::lanes;
  alignas(64) T weights[columns];
  score_tile(problem, first_row, rows, first_column, tile);
  for (int row = 0; row < rows; ++row) {
    T* scores = tile + row * columns;
    const int64_t own = first_row + row;
    for (int k = 0; k < columns; k += lanes) {
      const V score = load(scores + k);
      V weight{};
      if (row_side.grad_all)
        weight += exponential(at_most_zero(score - row_side.lse_all[own])) * row_side.grad_all[own];
      if (column_side.grad_all) {
        const int64_t column = first_column + k;
        weight +=
            exponential(at_most_zero(score - load(column_side.lse_all + column))) * load(column_side.grad_all + column);
      }
      store(weights + k, weight);
    }
    if (may_equal(problem, own, first_column)) {
      for_each_equal<T>(problem, own, first_column, [&](int k, auto same) {
        const V score = load(scores + k);
        V weight{};
        if (row_side.grad_all)
          weight += exponential(at_most_zero(score - row_side.lse_equal[own])) * row_side.grad_equal[own];
        if (column_side.grad_all) {
          const int64_t column = first_column + k;
          weight += exponential(at_most_zero(score - load(column_side.lse_equal + column))) *
                    load(column_side.grad_equal + column);
        }
        store(weights + k, load(weights + k) + (same ? weight : V{}));
      });
    }
    // A pair that does not meet may have got any number: its score is no part of the sums that it was compared with.
    for (int k = 0; k < columns; k += lanes) {
      store(scores + k, load(scores + k) == splat(nothing<T>) ? V{} : load(weights + k));
    }
  }
}

template <typename T>
void backward(const ScoreProblem<T>& problem, int64_t index, const ScoreSide<T>& row_side,
              const ScoreSide<T>& column_side, T* gradient) {
  using V = typename Vector<T>::type;
  constexpr int columns = tile_columns<T>;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int panel = panel_columns<T>;
  alignas(64) T tile[strip_rows * columns];
  const int64_t first_row = index * problem.block;
  const int64_t rows = smaller(problem.block, problem.row_count - first_row);
  for (int64_t k = 0; k < problem.block * problem.width; k += lanes) store(gradient + k, V{});
  for (int64_t first_column = 0; first_column < problem.column_count; first_column += columns) {
    const int64_t used = smaller(columns, problem.column_count - first_column);
    for (int64_t strip = 0; strip < rows; strip += strip_rows) {
      const int strip_used = static_cast<int>(smaller(strip_rows, rows - strip));
      weight_tile(problem, first_row + strip, strip_used, first_column, row_side, column_side, tile);
      for (int64_t d = 0; d < problem.width; d += panel) {
        for (int row = 0; row < strip_used; row += group_rows) {
          multiply<true>(tile + row * columns, columns, 1, problem.columns + first_column * problem.width + d,
                         problem.width, used, gradient + (strip + row) * problem.width + d, problem.width);
        }
      }
    }
  }
  for (int64_t k = 0; k < problem.block * problem.width; k += lanes) {
    store(gradient + k, load(gradient + k) * problem.inverse_temperature);
  }
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
ScoreKernels<T> score_lse_kernels() {
  return {block_rows, group_rows, tile_columns<T>, panel_columns<T>, &forward<T>, &backward<T>};
}

template ScoreKernels<float> score_lse_kernels<float>();
template ScoreKernels<double> score_lse_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
