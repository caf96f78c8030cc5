#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "sslfast/check.h"
#include "unit_rows.cuh"

namespace sslfast {
namespace {

// Small problems stay on one thread: waking the others costs more where the machine is shared.
int64_t rows_per_task(int64_t depth) { return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, depth)); }

// Eight running sums let the compiler use vectors without reordering one; double cannot overflow on float32 rows.
template <typename T>
double dot(const T* a, const T* b, int64_t depth) {
  double part[8] = {};
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    for (int lane = 0; lane < 8; ++lane) part[lane] += static_cast<double>(a[k + lane]) * b[k + lane];
  }
  for (; k < depth; ++k) part[0] += static_cast<double>(a[k]) * b[k];
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& x) {
  const int64_t count = x.size(0), depth = x.size(1);
  Tensor unit = torch::stable::new_empty(x, {count, depth});
  Tensor inverse_norm = torch::stable::new_empty(x, {count});
  const T* source = x.const_data_ptr<T>();
  T* target = unit.mutable_data_ptr<T>();
  T* inverse = inverse_norm.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, count, rows_per_task(depth), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = source + row * depth;
      const double factor = inverse_norm_of(dot(from, from, depth));
      inverse[row] = static_cast<T>(factor);
      for (int64_t k = 0; k < depth; ++k) target[row * depth + k] = static_cast<T>(from[k] * factor);
    }
  });
  return {unit, inverse_norm};
}

template <typename T>
Tensor backward(const Tensor& grad, const Tensor& unit, const Tensor& inverse_norm) {
  const int64_t count = unit.size(0), depth = unit.size(1);
  Tensor result = torch::stable::new_empty(unit, {count, depth});
  const T* grad_data = grad.const_data_ptr<T>();
  const T* unit_data = unit.const_data_ptr<T>();
  const T* inverse = inverse_norm.const_data_ptr<T>();
  T* target = result.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, count, rows_per_task(depth), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* g = grad_data + row * depth;
      const T* u = unit_data + row * depth;
      const T along = projection(inverse[row], static_cast<T>(dot(g, u, depth)));
      for (int64_t k = 0; k < depth; ++k) target[row * depth + k] = (g[k] - along * u[k]) * inverse[row];
    }
  });
  return result;
}

std::tuple<Tensor, Tensor> unit_rows_fwd_cpu(const Tensor& x) {
  check_matrix("unit_rows_fwd", "x", x);
  const Tensor rows = torch::stable::contiguous(x);
  return x.scalar_type() == ScalarType::Float ? forward<float>(rows) : forward<double>(rows);
}

Tensor unit_rows_bwd_cpu(const Tensor& grad, const Tensor& unit, const Tensor& inverse_norm) {
  check_matrix("unit_rows_bwd", "unit", unit);
  check_like("unit_rows_bwd", "grad", grad, unit, 2);
  check_like("unit_rows_bwd", "inverse_norm", inverse_norm, unit, 1);
  const Tensor g = torch::stable::contiguous(grad), u = torch::stable::contiguous(unit),
               inverse = torch::stable::contiguous(inverse_norm);
  return unit.scalar_type() == ScalarType::Float ? backward<float>(g, u, inverse) : backward<double>(g, u, inverse);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("unit_rows_fwd", TORCH_BOX(&sslfast::unit_rows_fwd_cpu));
  m.impl("unit_rows_bwd", TORCH_BOX(&sslfast::unit_rows_bwd_cpu));
}
