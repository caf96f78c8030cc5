#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "unit_rows_tiles.h"

namespace sslfast {
namespace {

// Small problems stay on one thread: waking the others costs more where the machine is shared.
int64_t rows_per_task(int64_t depth) { return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, depth)); }

template <typename T>
UnitRowsKernels<T> kernels() {
  return SSLFAST_CHOOSE(unit_rows_kernels<T>);
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& x) {
  const UnitRowsKernels<T> kernel = kernels<T>();
  const int64_t count = x.size(0), depth = x.size(1);
  Tensor unit = torch::stable::new_empty(x, {count, depth});
  Tensor inverse_norm = torch::stable::new_empty(x, {count});
  const T* source = x.const_data_ptr<T>();
  T* target = unit.mutable_data_ptr<T>();
  T* inverse = inverse_norm.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, count, rows_per_task(depth), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      inverse[row] = kernel.forward(source + row * depth, depth, target + row * depth);
    }
  });
  return {unit, inverse_norm};
}

template <typename T>
Tensor backward(const Tensor& grad, const Tensor& unit, const Tensor& inverse_norm) {
  const UnitRowsKernels<T> kernel = kernels<T>();
  const int64_t count = unit.size(0), depth = unit.size(1);
  Tensor result = torch::stable::new_empty(unit, {count, depth});
  const T* grad_data = grad.const_data_ptr<T>();
  const T* unit_data = unit.const_data_ptr<T>();
  const T* inverse = inverse_norm.const_data_ptr<T>();
  T* target = result.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, count, rows_per_task(depth), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t start = row * depth;
      kernel.backward(grad_data + start, unit_data + start, inverse[row], depth, target + start);
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
