// Rows scaled to unit length, compiled once per capability (no std:: templates: see nt_xent_tiles.cpp).
#include "unit_rows_tiles.h"

#include "sslfast/vector.h"
#include "unit_rows.cuh"

namespace sslfast {
namespace {

// Four vectors of running sums: each lane adds few numbers, and no addition waits for the one before.
template <typename T>
inline double dot(const T* a, const T* b, int64_t depth) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  V part[4] = {};
  int64_t k = 0;
  for (; k + 4 * lanes <= depth; k += 4 * lanes) {
#pragma GCC unroll 4
    for (int which = 0; which < 4; ++which) part[which] += load(a + k + which * lanes) * load(b + k + which * lanes);
  }
  double sum = 0;
  for (; k < depth; ++k) sum += static_cast<double>(a[k]) * b[k];
  const V all = (part[0] + part[1]) + (part[2] + part[3]);
  for (int lane = 0; lane < lanes; ++lane) sum += all[lane];
  return sum;
}

// For rows whose squares leave float32: in double, one by one.
template <typename T>
inline double squared_length(const T* x, int64_t depth) {
  const double sum = dot(x, x, depth);
  if (sizeof(T) == sizeof(double) || (sum > 1e-24 && sum < 1e38)) return sum;
  double exact = 0;
  for (int64_t k = 0; k < depth; ++k) exact += static_cast<double>(x[k]) * x[k];
  return exact;
}

template <typename T>
T forward(const T* x, int64_t depth, T* unit) {
  constexpr int lanes = Vector<T>::lanes;
  const double factor = inverse_norm_of(squared_length(x, depth));
  const T narrow = static_cast<T>(factor);
  int64_t k = 0;
  // Lengths beyond 1e38 have a factor that is subnormal in float32.
  if (sizeof(T) == sizeof(double) || factor > 1e-30) {
    for (; k + lanes <= depth; k += lanes) store(unit + k, load(x + k) * narrow);
  }
  for (; k < depth; ++k) unit[k] = static_cast<T>(x[k] * factor);
  return narrow;
}

template <typename T>
void backward(const T* grad, const T* unit, T inverse_norm, int64_t depth, T* result) {
  constexpr int lanes = Vector<T>::lanes;
  const T along = projection(inverse_norm, static_cast<T>(dot(grad, unit, depth)));
  int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    store(result + k, (load(grad + k) - load(unit + k) * along) * inverse_norm);
  }
  for (; k < depth; ++k) result[k] = (grad[k] - along * unit[k]) * inverse_norm;
}

}  // namespace

namespace SSLFAST_CAPABILITY {

template <typename T>
UnitRowsKernels<T> unit_rows_kernels() {
  return {&forward<T>, &backward<T>};
}

template UnitRowsKernels<float> unit_rows_kernels<float>();
template UnitRowsKernels<double> unit_rows_kernels<double>();

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
