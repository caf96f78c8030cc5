#pragma once
// The register tile of every matrix product on the CPU, for sources that are compiled once per capability.
#include <cstdint>

#include "sslfast/vector.h"

namespace sslfast {
namespace {

// 2 vectors times `group_rows` rows of accumulators fill the registers: 24 of 32 (AVX-512), 12 of 16 otherwise.
constexpr int group_rows = SSLFAST_VECTOR_BITS == 512 ? 12 : 6;

template <typename T>
constexpr int panel_columns = 2 * Vector<T>::lanes;

// c (rows x panel) = or += a (rows x depth) b (depth x panel). Entry (row, k) of a stands at
// a[row * a_row + k * a_depth]: a_depth = 1 for a row-major matrix, a_row = 1 for a transposed one. The sum over the
// depth starts from zero and is added to c at the end, so that over several calls rounding errors grow with the number
// of calls and with the depth of one, not with the sum of depths.
template <bool accumulate, int rows = group_rows, typename T>
inline void multiply(const T* a, int64_t a_row, int64_t a_depth, const T* b, int64_t b_stride, int64_t depth, T* c,
                     int64_t c_stride) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  V sum[rows][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const V left = load(b + k * b_stride);
    const V right = load(b + k * b_stride + lanes);
#pragma GCC unroll 12
    for (int row = 0; row < rows; ++row) {
      const V factor = splat(a[row * a_row + k * a_depth]);
      sum[row][0] += factor * left;
      sum[row][1] += factor * right;
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < rows; ++row) {
    T* to = c + row * c_stride;
    store(to, accumulate ? load(to) + sum[row][0] : sum[row][0]);
    store(to + lanes, accumulate ? load(to + lanes) + sum[row][1] : sum[row][1]);
  }
}

}  // namespace
}  // namespace sslfast
