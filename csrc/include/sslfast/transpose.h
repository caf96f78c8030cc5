#pragma once
// Transposition of a square of vectors in registers, for sources that are compiled once per capability.
#include <cstdint>

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

}  // namespace
}  // namespace sslfast
