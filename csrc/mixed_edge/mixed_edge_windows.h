#pragma once
// Correlations of planes with small windows, and the gradients of their weights.
#include "mixed_edge.h"
#include "sslfast/vector.h"

namespace sslfast {
namespace {

// Rows and columns of plane whose sums stay in registers: 16 of 32 vectors (AVX-512), 8 of 16 otherwise.
constexpr int window_rows = 4;
constexpr int window_columns = SSLFAST_VECTOR_BITS == 512 ? 4 : 2;

template <typename T, int height, int width, int stride, int rows, int columns>
inline void correlate_tile(const EdgeWindow<T>& window, int64_t y, int64_t x, int64_t lane, const T* weights,
                           bool add) {
  using V = typename Vector<T>::type;
  T* plane = window.plane + y * window.row + x * window.column + lane;
  const T* taps = window.taps + stride * (y * window.tap_row + x * window.tap_column) + lane;
  V sum[rows][columns];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sum[r][c] = add ? load(plane + r * window.row + c * window.column) : V{};
  }
#pragma GCC unroll 5
  for (int j = 0; j < width; ++j) {
    V weight[height];
#pragma GCC unroll 5
    for (int i = 0; i < height; ++i) weight[i] = splat(weights[i * width + j]);
    const T* row = taps + j * window.tap_column;
    // A tap is loaded once and goes to every row that it belongs to.
#pragma GCC unroll 12
    for (int tap = 0; tap < (rows - 1) * stride + height; ++tap, row += window.tap_row) {
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) {
        const V value = load(row + c * stride * window.tap_column);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          const int i = tap - stride * r;
          if (i >= 0 && i < height) sum[r][c] += weight[i] * value;
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) store(plane + r * window.row + c * window.column, sum[r][c]);
  }
}

template <typename T, int height, int width, int stride, int rows>
inline void correlate_rows(const EdgeWindow<T>& window, int64_t y, int64_t lane, const T* weights, bool add) {
  int64_t x = 0;
  for (; x + window_columns <= window.columns; x += window_columns) {
    correlate_tile<T, height, width, stride, rows, window_columns>(window, y, x, lane, weights, add);
  }
  for (; x < window.columns; ++x) correlate_tile<T, height, width, stride, rows, 1>(window, y, x, lane, weights, add);
}

template <typename T, int height, int width, int stride>
void correlate_window(const EdgeWindow<T>& window, const T* weights, bool add) {
  for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
    int64_t y = 0;
    for (; y + window_rows <= window.rows; y += window_rows) {
      correlate_rows<T, height, width, stride, window_rows>(window, y, lane, weights, add);
    }
    for (; y < window.rows; ++y) correlate_rows<T, height, width, stride, 1>(window, y, lane, weights, add);
  }
}

template <typename T>
void correlate(int64_t height, int64_t width, int64_t stride, const EdgeWindow<T>& window, const T* weights, bool add) {
  if (stride == 2) {
    if (height == 3) return correlate_window<T, 3, 3, 2>(window, weights, add);
    return correlate_window<T, 5, 5, 2>(window, weights, add);
  }
  switch (8 * height + width) {
    case 9:
      return correlate_window<T, 1, 1, 1>(window, weights, add);
    case 10:
      return correlate_window<T, 1, 2, 1>(window, weights, add);
    case 17:
      return correlate_window<T, 2, 1, 1>(window, weights, add);
    case 18:
      return correlate_window<T, 2, 2, 1>(window, weights, add);
    case 19:
      return correlate_window<T, 2, 3, 1>(window, weights, add);
    case 26:
      return correlate_window<T, 3, 2, 1>(window, weights, add);
    case 27:
      return correlate_window<T, 3, 3, 1>(window, weights, add);
    default:
      return correlate_window<T, 5, 5, 1>(window, weights, add);
  }
}

// Some columns of the window's weights, summed over a few rows of the plane in registers, then added to memory: so no
// sum runs over many numbers.
template <typename T, int size, int stride, int first, int count, int rows>
inline void weigh_rows(const EdgeWindow<T>& window, int64_t y, int64_t lane, T* sums) {
  using V = typename Vector<T>::type;
  V sum[size][count] = {};
  const T* plane = window.plane + y * window.row + lane;
  const T* taps = window.taps + stride * y * window.tap_row + first * window.tap_column + lane;
  for (int64_t x = 0; x < window.columns; ++x, plane += window.column, taps += stride * window.tap_column) {
    V value[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) value[r] = load(plane + r * window.row);
    const T* row = taps;
#pragma GCC unroll 12
    for (int tap = 0; tap < (rows - 1) * stride + size; ++tap, row += window.tap_row) {
#pragma GCC unroll 5
      for (int j = 0; j < count; ++j) {
        const V one = load(row + j * window.tap_column);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          const int i = tap - stride * r;
          if (i >= 0 && i < size) sum[i][j] += value[r] * one;
        }
      }
    }
  }
#pragma GCC unroll 5
  for (int i = 0; i < size; ++i) {
#pragma GCC unroll 5
    for (int j = 0; j < count; ++j) {
      T* to = sums + (i * size + first + j) * edge_lanes<T> + lane;
      store(to, load(to) + sum[i][j]);
    }
  }
}

template <typename T, int size, int stride, int rows>
inline void weigh_window_rows(const EdgeWindow<T>& window, int64_t y, int64_t lane, T* sums) {
  if constexpr (size == 3) {
    weigh_rows<T, 3, stride, 0, SSLFAST_VECTOR_BITS == 512 ? 3 : 2, rows>(window, y, lane, sums);
    if constexpr (SSLFAST_VECTOR_BITS < 512) weigh_rows<T, 3, stride, 2, 1, rows>(window, y, lane, sums);
  } else if constexpr (SSLFAST_VECTOR_BITS == 512) {
    weigh_rows<T, 5, stride, 0, 5, rows>(window, y, lane, sums);
  } else {
    weigh_rows<T, 5, stride, 0, 2, rows>(window, y, lane, sums);
    weigh_rows<T, 5, stride, 2, 2, rows>(window, y, lane, sums);
    weigh_rows<T, 5, stride, 4, 1, rows>(window, y, lane, sums);
  }
}

template <typename T, int size, int stride>
void weigh_window(const EdgeWindow<T>& window, T* sums) {
  for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
    int64_t y = 0;
    for (; y + window_rows <= window.rows; y += window_rows) {
      weigh_window_rows<T, size, stride, window_rows>(window, y, lane, sums);
    }
    for (; y < window.rows; ++y) weigh_window_rows<T, size, stride, 1>(window, y, lane, sums);
  }
}

template <typename T>
void weigh(int64_t size, int64_t stride, const EdgeWindow<T>& window, T* sums) {
  if (size == 3) {
    return stride == 1 ? weigh_window<T, 3, 1>(window, sums) : weigh_window<T, 3, 2>(window, sums);
  }
  return stride == 1 ? weigh_window<T, 5, 1>(window, sums) : weigh_window<T, 5, 2>(window, sums);
}

}  // namespace
}  // namespace sslfast
