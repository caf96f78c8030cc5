#pragma once
// From numbers to cells: transposes, and pairs of bfloat16 where products are computed with them.
#include <cstdint>

#include "head_bank.h"
#include "sslfast/score_rows.h"

namespace sslfast {
namespace {

inline int64_t panel_width(int64_t columns, int64_t panel) { return smaller(head_panel, columns - panel); }

template <bool half>
constexpr int64_t numbers_per_cell = half ? 2 : 1;

#if SSLFAST_VECTOR_BITS == 512
// Sixteen rows of sixteen numbers: pairs of numbers, of pairs, of fours and of eights change places.
inline void transpose_square(Vector<float>::type (&row)[16]) {
  using V = Vector<float>::type;
  V pair[16], four[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pair[i] = __builtin_shufflevector(row[i], row[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    pair[i + 1] =
        __builtin_shufflevector(row[i], row[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const V a = pair[i + k], b = pair[i + k + 2];
      four[i + 2 * k] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      four[i + 2 * k + 1] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    V part[2][2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const V a = four[8 * k + j], b = four[8 * k + 4 + j];
      part[k][0] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      part[k][1] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      const V a = part[0][k], b = part[1][k];
      row[4 * k + j] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      row[4 * k + j + 8] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
  }
}
#endif

// to (columns, rows) = from (rows, columns) transposed; both are multiples of 16.
template <typename T>
inline void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  for (int64_t row = 0; row < rows; row += 16) {
    for (int64_t column = 0; column < columns; column += 16) {
      const T* block = from + row * from_stride + column;
      T* target = to + column * to_stride + row;
#if SSLFAST_VECTOR_BITS == 512
      if constexpr (sizeof(T) == 4) {
        Vector<float>::type values[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) values[i] = load(block + i * from_stride);
        transpose_square(values);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store(target + i * to_stride, values[i]);
        continue;
      }
#endif
      for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 16; ++j) target[j * to_stride + i] = block[i * from_stride + j];
      }
    }
  }
}

#ifdef SSLFAST_BF16
typedef uint16_t Halves __attribute__((vector_size(32)));

inline Halves to_bfloat16(Vector<float>::type values) { return (Halves)_mm512_cvtneps_pbh((__m512)values); }

// Pairs (low, high) of bfloat16, one in each lane.
inline Vector<float>::bits to_pairs(Vector<float>::type low, Vector<float>::type high) {
  using Bits = Vector<float>::bits;
  return __builtin_convertvector(to_bfloat16(low), Bits) | (__builtin_convertvector(to_bfloat16(high), Bits) << 16);
}

inline Vector<float>::type from_bfloat16(const float* cells) {
  Halves halves;
  __builtin_memcpy(&halves, cells, sizeof(halves));
  return (Vector<float>::type)(__builtin_convertvector(halves, Vector<float>::bits) << 16);
}

template <typename Value>
inline void store_cells(float* to, Value value) {
  __builtin_memcpy(to, &value, sizeof(value));
}
#endif

// Cells along columns: a row of numbers, or of half as many pairs of neighbours. Of full precision `to` may be `from`.
template <bool half, typename T>
inline void cells_along_columns(const T* from, int64_t rows, int64_t columns, int64_t stride, T* to) {
  if (!half && to == from) return;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; column += 16) {
      const T* values = from + row * stride + column;
#ifdef SSLFAST_BF16
      if constexpr (half) {
        store_cells(to + (row * stride + column) / 2, to_bfloat16(load(values)));
        continue;
      }
#endif
      __builtin_memcpy(to + row * stride + column, values, 16 * sizeof(T));
    }
  }
}

// Cells along rows: the matrix, or half as many rows of pairs of a number and the one below it.
template <bool half, typename T>
inline void cells_along_rows(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to,
                             int64_t to_stride) {
  if (!half && to == from) return;
  for (int64_t row = 0; row < rows; row += half ? 2 : 1) {
    for (int64_t column = 0; column < columns; column += 16) {
      const T* values = from + row * from_stride + column;
#ifdef SSLFAST_BF16
      if constexpr (half) {
        store_cells(to + row / 2 * to_stride + column, to_pairs(load(values), load(values + from_stride)));
        continue;
      }
#endif
      __builtin_memcpy(to + row * to_stride + column, values, 16 * sizeof(T));
    }
  }
}

// The same into panels: panel after panel of `rows` (in cells) rows.
template <bool half, typename T>
inline void cells_in_panels(const T* from, int64_t rows, int64_t columns, int64_t stride, T* to) {
  for (int64_t panel = 0; panel < columns; panel += head_panel) {
    const int64_t width = columns - panel < head_panel ? columns - panel : head_panel;
    cells_along_rows<half>(from + panel, rows, width, stride, to + panel * (half ? rows / 2 : rows), width);
  }
}

}  // namespace
}  // namespace sslfast
