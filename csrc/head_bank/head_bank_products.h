#pragma once
// Matrix products of a head: register tiles over cells, which hand their sums to whatever comes next.
#include <cstdint>

#include "head_bank.h"
#include "sslfast/vector.h"

namespace sslfast {
namespace {

// 6 rows of 4 vectors leave 8 of 32 registers for operands (AVX-512), 6 of 2 leave 4 of 16.
constexpr int tile_rows = 6;
constexpr int tile_vectors = SSLFAST_VECTOR_BITS == 512 ? 4 : 2;

template <bool half, typename V>
inline V multiplied(V sum, V a, V b) {
#ifdef SSLFAST_BF16
  if constexpr (half) return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
  return sum + a * b;
}

// One cell in every lane. Two bfloat16 may look like a NaN: no arithmetic.
template <bool half, typename T>
inline typename Vector<T>::type broadcast(const T* from) {
#ifdef SSLFAST_BF16
  if constexpr (half) {
    uint32_t cell;
    __builtin_memcpy(&cell, from, sizeof(cell));
    return (typename Vector<T>::type)(cell - typename Vector<T>::bits{});
  }
#endif
  return splat(*from);
}

// sum (rows, vectors) += a (rows, depth) b (depth, vectors), all cells.
template <bool half, int rows, int vectors, typename T>
inline __attribute__((always_inline)) void add_product(typename Vector<T>::type (&sum)[rows][vectors], const T* a,
                                                       int64_t a_stride, const T* b, int64_t b_stride, int64_t depth) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  for (int64_t k = 0; k < depth; ++k) {
    V right[vectors];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) right[n] = load(b + k * b_stride + n * lanes);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const V left = broadcast<half>(a + row * a_stride + k);
#pragma GCC unroll 4
      for (int n = 0; n < vectors; ++n) sum[row][n] = multiplied<half>(sum[row][n], left, right[n]);
    }
  }
}

// Calls tile<rows, vectors>(row, column) for tiles that cover rows x columns; columns is a multiple of head_columns.
template <int vectors, typename Tile>
inline void each_tile_of(int64_t rows, int64_t column, const Tile& tile) {
  int64_t row = 0;
  for (; row + tile_rows <= rows; row += tile_rows) tile.template operator()<tile_rows, vectors>(row, column);
  if (row + 4 <= rows) {
    tile.template operator()<4, vectors>(row, column);
    row += 4;
  }
  if (row + 2 <= rows) tile.template operator()<2, vectors>(row, column);
}

template <typename T, typename Tile>
inline void each_tile(int64_t rows, int64_t columns, const Tile& tile) {
  constexpr int lanes = Vector<T>::lanes;
  int64_t column = 0;
  for (; column + tile_vectors * lanes <= columns; column += tile_vectors * lanes) {
    each_tile_of<tile_vectors>(rows, column, tile);
  }
  if constexpr (tile_vectors == 4) {
    const int64_t left = (columns - column) / lanes;
    if (left == 3) each_tile_of<3>(rows, column, tile);
    if (left == 2) each_tile_of<2>(rows, column, tile);
    if (left == 1) each_tile_of<1>(rows, column, tile);
  }
}

// c (rows, columns) = or += a (rows, depth) b (depth, columns). What is there is added last: a sum over many blocks of
// a depth, begun with what the blocks before gave, would lose as much as one that is never divided.
template <bool half, typename T>
inline void multiply_cells(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t depth, int64_t rows,
                           int64_t columns, bool add, T* c, int64_t c_stride) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  each_tile<T>(rows, columns, [&]<int tile, int vectors>(int64_t row, int64_t column) {
    V sum[tile][vectors] = {};
    T* to = c + row * c_stride + column;
    add_product<half>(sum, a + row * a_stride, a_stride, b + column, b_stride, depth);
#pragma GCC unroll 8
    for (int r = 0; r < tile; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < vectors; ++n) {
        T* const there = to + r * c_stride + n * lanes;
        store(there, add ? load(there) + sum[r][n] : sum[r][n]);
      }
    }
  });
}

}  // namespace
}  // namespace sslfast
