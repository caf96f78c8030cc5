#pragma once
// Rows into panels of columns, for sources that are compiled once per capability.
#include <cstdint>

#include "sslfast/multiply.h"
#include "sslfast/vector.h"

namespace sslfast {
namespace {

// Which lanes of two vectors stand, after one step of a transposition, in the first and in the second of them.
template <typename T>
struct Swap;
template <>
struct Swap<float> {
  typedef int32_t lanes __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
};
template <>
struct Swap<double> {
  typedef int64_t lanes __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
};

// Rows become columns, by exchanging the off-diagonal quarters of blocks of half the size, down to single entries.
template <typename T>
inline void transpose_block(typename Vector<T>::type* block) {
  constexpr int lanes = Vector<T>::lanes;
#pragma GCC unroll 4
  for (int half = lanes / 2; half > 0; half /= 2) {
    typename Swap<T>::lanes upper{}, lower{};
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) {
      upper[lane] = lane & half ? lanes + lane - half : lane;
      lower[lane] = lane & half ? lanes + lane : lane + half;
    }
#pragma GCC unroll 16
    for (int row = 0; row < lanes; ++row) {
      if (row & half) continue;
      const typename Vector<T>::type first = block[row], second = block[row + half];
      block[row] = __builtin_shuffle(first, second, upper);
      block[row + half] = __builtin_shuffle(first, second, lower);
    }
  }
}

template <typename T>
void transpose(const T* from, int64_t from_row, int64_t rows, int64_t depth, T* to) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int panel = panel_columns<T>;
  for (int64_t r = 0; r < panel; r += lanes) {
    int64_t k = 0;
    for (; r + lanes <= rows && k + lanes <= depth; k += lanes) {
      V block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) block[i] = load(from + (r + i) * from_row + k);
      transpose_block<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store(to + (k + i) * panel + r, block[i]);
    }
    for (; k < depth; ++k) {
      for (int64_t i = r; i < r + lanes; ++i) to[k * panel + i] = i < rows ? from[i * from_row + k] : T(0);
    }
  }
}

}  // namespace
}  // namespace sslfast
