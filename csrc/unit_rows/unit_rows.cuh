#pragma once
// The row's arithmetic, the same on CPU and GPU. Internal linkage: see sslfast/vector.h.
#include <cmath>

#if defined(__CUDACC__)
#define SSLFAST_HOST_DEVICE __host__ __device__
#else
#define SSLFAST_HOST_DEVICE
#endif

namespace sslfast {

// Shorter rows are divided by this instead of by their length, as torch.nn.functional.normalize does.
constexpr double shortest_row = 1e-12;

// 1 / max(length, shortest_row); NaN stays NaN.
SSLFAST_HOST_DEVICE static inline double inverse_norm_of(double sum_of_squares) {
  const double norm = sqrt(sum_of_squares);
  return 1.0 / (norm < shortest_row ? shortest_row : norm);
}

// What the Jacobian subtracts along the row, per unit of `along` = unit . grad: a clamped row is scaled by a constant.
template <typename T>
SSLFAST_HOST_DEVICE static inline T projection(T inverse_norm, T along) {
  return inverse_norm < static_cast<T>(1 / shortest_row) ? along : T(0) * along;
}

}  // namespace sslfast
