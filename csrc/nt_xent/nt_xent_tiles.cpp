// The tiled loops of NT-Xent, compiled once per capability. No std:: templates here: an inline function that is
// compiled with wider vectors must not be the copy that the linker keeps for everybody.
//
// The matrix of scores is symmetric: each tile above the diagonal serves its rows and its columns, so that every pair
// costs one product and one exponential.
#include "nt_xent_tiles.h"

#include "sslfast/multiply.h"
#include "unit_rows/unit_rows.cuh"

namespace sslfast {
namespace {

// Divides every panel; 2 vectors times 8 rows of accumulators keep both multipliers busy.
constexpr int row_step = SSLFAST_VECTOR_BITS == 512 ? 8 : 4;
constexpr int row_panels_per_tile = 2;
constexpr int column_panels_per_tile = 8;

template <typename T>
constexpr int tile_rows = row_panels_per_tile * panel_columns<T>;
template <typename T>
constexpr int tile_columns = column_panels_per_tile * panel_columns<T>;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// A part of the score matrix: at most tile_rows x tile_columns, stored with a stride of tile_columns.
struct Tile {
  int64_t first_row, rows, first_column, columns;
};

template <typename T, typename Body>
inline void for_each_tile(const NtXentProblem<T>& problem, int64_t row_block, int64_t column_block, Body body) {
  for (int64_t r = 0; r < problem.block; r += tile_rows<T>) {
    for (int64_t c = 0; c < problem.block; c += tile_columns<T>) {
      body(Tile{row_block * problem.block + r, smaller(tile_rows<T>, problem.block - r),
                column_block * problem.block + c, smaller(tile_columns<T>, problem.block - c)});
    }
  }
}

// u_i . u_j
template <typename T>
inline void cosines(const NtXentProblem<T>& problem, const Tile& at, T* tile) {
  constexpr int panel = panel_columns<T>;
  for (int64_t column = 0; column < at.columns; column += panel) {
    const T* right = problem.panels + (at.first_column + column) * problem.depth;
    for (int64_t row = 0; row < at.rows; row += row_step) {
      const T* left = problem.panels + (at.first_row + row) / panel * panel * problem.depth + row % panel;
      multiply<false, row_step>(left, 1, panel, right, panel, problem.depth, tile + row * tile_columns<T> + column,
                                tile_columns<T>);
    }
  }
}

// Calls body(row of the tile, column of the tile) where the tile holds a row and its partner.
template <typename T, typename Body>
inline void for_each_positive(const NtXentProblem<T>& problem, const Tile& at, Body body) {
  const int64_t half = problem.count / 2;
  for (int64_t row = 0; row < at.rows; ++row) {
    const int64_t own = at.first_row + row;
    if (own >= problem.count) break;
    const int64_t column = (own < half ? own + half : own - half) - at.first_column;
    if (column >= 0 && column < at.columns) body(row, column);
  }
}

template <typename T>
void forward(const NtXentProblem<T>& problem, int64_t row_block, int64_t column_block, T* row_sums, T* column_sums,
             T* positives) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int vectors = tile_columns<T> / lanes;
  alignas(64) T tile[tile_rows<T> * tile_columns<T>];
  for (int64_t k = 0; k < problem.block; k += lanes) store(row_sums + k, V{});
  if (row_block != column_block) {
    for (int64_t k = 0; k < problem.block; k += lanes) store(column_sums + k, V{});
  }
  const T factor = problem.inverse_temperature;
  for_each_tile(problem, row_block, column_block, [&](const Tile& at) {
    cosines(problem, at, tile);
    for_each_positive(problem, at, [&](int64_t row, int64_t column) {
      positives[at.first_row + row] = positives[at.first_column + column] =
          tile[row * tile_columns<T> + column] * factor;
    });
    const int64_t used_rows = smaller(at.rows, problem.count - at.first_row);
    const int64_t used_columns = smaller(at.columns, larger(0, problem.count - at.first_column));
    const int64_t used_vectors = at.columns / lanes;
    V by_column[vectors] = {};
    for (int64_t row = 0; row < used_rows; ++row) {
      T* scores = tile + row * tile_columns<T>;
      const int64_t own = at.first_row + row - at.first_column;
      const bool whole = used_columns == at.columns && (own < 0 || own >= at.columns);
      if (!whole) {
        // An exponential of 0 for the row itself and for padding. -infinity is no argument of bounded_exponential.
        for (int64_t v = 0; v < used_vectors; ++v) {
          store(scores + v * lanes, bounded_exponential(load(scores + v * lanes) * factor - factor));
        }
        if (own >= 0 && own < at.columns) scores[own] = 0;
        for (int64_t column = used_columns; column < at.columns; ++column) scores[column] = 0;
      }
      V by_row{};
      for (int64_t v = 0; v < used_vectors; ++v) {
        const V score = load(scores + v * lanes);
        const V value = whole ? bounded_exponential(score * factor - factor) : score;
        by_row += value;
        by_column[v] += value;
      }
      row_sums[at.first_row + row - row_block * problem.block] += sum_of<T>(by_row);
    }
    if (row_block != column_block) {
      T* sums = column_sums + at.first_column - column_block * problem.block;
      for (int64_t v = 0; v < used_vectors; ++v) store(sums + v * lanes, load(sums + v * lanes) + by_column[v]);
    }
  });
}

template <typename T>
void backward(const NtXentProblem<T>& problem, int64_t row_block, int64_t column_block, const T* inverse_sums,
              T* gradient) {
  constexpr int lanes = Vector<T>::lanes;
  constexpr int panel = panel_columns<T>;
  constexpr int stride = tile_columns<T>;
  alignas(64) T tile[tile_rows<T> * tile_columns<T>];
  const T factor = problem.inverse_temperature;
  for_each_tile(problem, row_block, column_block, [&](const Tile& at) {
    cosines(problem, at, tile);
    for (int64_t row = 0; row < at.rows; ++row) {
      T* weights = tile + row * stride;
      const T own = inverse_sums[at.first_row + row];
      for (int64_t k = 0; k < at.columns; k += lanes) {
        // Rows and columns of padding get a finite weight, which meets zeros or a row that nobody reads.
        const auto value = bounded_exponential(load(weights + k) * factor - factor);
        store(weights + k, value * (load(inverse_sums + at.first_column + k) + own));
      }
      const int64_t self = at.first_row + row - at.first_column;
      if (self >= 0 && self < at.columns) weights[self] = 0;
    }
    for_each_positive(problem, at, [&](int64_t row, int64_t column) { tile[row * stride + column] -= 2; });
    for (int64_t slice = 0; slice * panel < problem.depth; ++slice) {
      const T* values = problem.slices + slice * problem.padded * panel;
      T* sums = gradient + slice * problem.padded * panel;
      for (int64_t row = 0; row < at.rows; row += row_step) {
        multiply<true, row_step>(tile + row * stride, stride, 1, values + at.first_column * panel, panel, at.columns,
                                 sums + (at.first_row + row) * panel, panel);
      }
      if (row_block == column_block) continue;
      for (int64_t column = 0; column < at.columns; column += row_step) {
        multiply<true, row_step>(tile + column, 1, stride, values + at.first_row * panel, panel, at.rows,
                                 sums + (at.first_column + column) * panel, panel);
      }
    }
  });
}

// In double: a row of float32 cannot overflow there.
template <typename T>
inline double squared_length(const T* row, int64_t depth) {
  double part[8] = {};
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    for (int lane = 0; lane < 8; ++lane) part[lane] += static_cast<double>(row[k + lane]) * row[k + lane];
  }
  for (; k < depth; ++k) part[0] += static_cast<double>(row[k]) * row[k];
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

template <typename T>
void pack(const T* const* rows, int64_t used, int64_t first, int64_t depth, int64_t padded, T* panels, T* slices,
          T* inverse_norm) {
  constexpr int panel = panel_columns<T>;
  T* columns = panels + first * depth;
  for (int64_t row = 0; row < panel; ++row) {
    const double factor = row < used ? inverse_norm_of(squared_length(rows[row], depth)) : 0;
    if (row < used) inverse_norm[first + row] = static_cast<T>(factor);
    for (int64_t start = 0; start < depth; start += panel) {
      T* slice = slices + (start / panel * padded + first + row) * panel;
      const int64_t count = smaller(panel, depth - start);
      for (int64_t k = 0; k < panel; ++k) {
        const T value = row < used && k < count ? static_cast<T>(rows[row][start + k] * factor) : T(0);
        slice[k] = value;
        if (k < count) columns[(start + k) * panel + row] = value;
      }
    }
  }
}

template <typename T>
void finish(const NtXentProblem<T>& problem, int64_t row, const T* gradient, T scale, T inverse_norm, T* result) {
  constexpr int panel = panel_columns<T>;
  double along = 0;
  for (int64_t start = 0; start < problem.depth; start += panel) {
    const int64_t at = (start / panel * problem.padded + row) * panel;
    const int64_t count = smaller(panel, problem.depth - start);
    double part[8] = {};
    for (int64_t k = 0; k < panel; ++k) {
      if (k < count) part[k % 8] += static_cast<double>(gradient[at + k]) * problem.slices[at + k];
    }
    for (int lane = 0; lane < 8; ++lane) along += part[lane];
  }
  const T projected = projection(inverse_norm, static_cast<T>(along));
  const T factor = scale * inverse_norm;
  for (int64_t start = 0; start < problem.depth; start += panel) {
    const int64_t at = (start / panel * problem.padded + row) * panel;
    const int64_t count = smaller(panel, problem.depth - start);
    for (int64_t k = 0; k < count; ++k) {
      result[start + k] = (gradient[at + k] - projected * problem.slices[at + k]) * factor;
    }
  }
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
NtXentKernels<T> nt_xent_kernels() {
  return {panel_columns<T>, &pack<T>, &forward<T>, &backward<T>, &finish<T>};
}

template NtXentKernels<float> nt_xent_kernels<float>();
template NtXentKernels<double> nt_xent_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
