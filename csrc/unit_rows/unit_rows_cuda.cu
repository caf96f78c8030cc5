// One warp per row: both passes over the row stay in one kernel, and nothing is read back to the host.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "sslfast/check.h"
#include "sslfast/cuda_launch.h"
#include "unit_rows.cuh"

namespace sslfast {
namespace {

constexpr int warp = 32;
constexpr int warps_per_block = 8;

// The same value in every lane, summed in the same order each time.
__device__ double warp_sum(double value) {
  for (int distance = warp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

template <typename T>
__global__ void unit_rows_fwd_kernel(const T* __restrict__ x, T* __restrict__ unit, T* __restrict__ inverse_norm,
                                     int64_t count, int64_t depth) {
  const int lane = threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * warps_per_block;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * warps_per_block + threadIdx.y; row < count; row += step) {
    const T* from = x + row * depth;
    double squares = 0;
    for (int64_t k = lane; k < depth; k += warp) squares += static_cast<double>(from[k]) * from[k];
    const double factor = inverse_norm_of(warp_sum(squares));
    if (lane == 0) inverse_norm[row] = static_cast<T>(factor);
    for (int64_t k = lane; k < depth; k += warp) unit[row * depth + k] = static_cast<T>(from[k] * factor);
  }
}

template <typename T>
__global__ void unit_rows_bwd_kernel(const T* __restrict__ grad, const T* __restrict__ unit,
                                     const T* __restrict__ inverse_norm, T* __restrict__ result, int64_t count,
                                     int64_t depth) {
  const int lane = threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * warps_per_block;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * warps_per_block + threadIdx.y; row < count; row += step) {
    const T* g = grad + row * depth;
    const T* u = unit + row * depth;
    double product = 0;
    for (int64_t k = lane; k < depth; k += warp) product += static_cast<double>(g[k]) * u[k];
    const T inverse = inverse_norm[row];
    const T along = projection(inverse, static_cast<T>(warp_sum(product)));
    for (int64_t k = lane; k < depth; k += warp) result[row * depth + k] = (g[k] - along * u[k]) * inverse;
  }
}

// Enough blocks for any device; rows beyond them are reached by the kernel's stride.
unsigned int blocks_for(int64_t count) {
  return static_cast<unsigned int>(std::clamp<int64_t>((count + warps_per_block - 1) / warps_per_block, 1, 65535));
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& x) {
  const int64_t count = x.size(0), depth = x.size(1);
  Tensor unit = torch::stable::new_empty(x, {count, depth});
  Tensor inverse_norm = torch::stable::new_empty(x, {count});
  if (count > 0) {
    unit_rows_fwd_kernel<T><<<blocks_for(count), dim3(warp, warps_per_block), 0, current_stream(x)>>>(
        x.const_data_ptr<T>(), unit.mutable_data_ptr<T>(), inverse_norm.mutable_data_ptr<T>(), count, depth);
    check_launch("unit_rows_fwd");
  }
  return {unit, inverse_norm};
}

template <typename T>
Tensor backward(const Tensor& grad, const Tensor& unit, const Tensor& inverse_norm) {
  const int64_t count = unit.size(0), depth = unit.size(1);
  Tensor result = torch::stable::new_empty(unit, {count, depth});
  if (count > 0) {
    unit_rows_bwd_kernel<T><<<blocks_for(count), dim3(warp, warps_per_block), 0, current_stream(unit)>>>(
        grad.const_data_ptr<T>(), unit.const_data_ptr<T>(), inverse_norm.const_data_ptr<T>(),
        result.mutable_data_ptr<T>(), count, depth);
    check_launch("unit_rows_bwd");
  }
  return result;
}

std::tuple<Tensor, Tensor> unit_rows_fwd_cuda(const Tensor& x) {
  check_matrix("unit_rows_fwd", "x", x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor rows = torch::stable::contiguous(x);
  return x.scalar_type() == ScalarType::Float ? forward<float>(rows) : forward<double>(rows);
}

Tensor unit_rows_bwd_cuda(const Tensor& grad, const Tensor& unit, const Tensor& inverse_norm) {
  check_matrix("unit_rows_bwd", "unit", unit);
  check_like("unit_rows_bwd", "grad", grad, unit, 2);
  check_like("unit_rows_bwd", "inverse_norm", inverse_norm, unit, 1);
  const torch::stable::accelerator::DeviceGuard guard(unit.get_device_index());
  const Tensor g = torch::stable::contiguous(grad), u = torch::stable::contiguous(unit),
               inverse = torch::stable::contiguous(inverse_norm);
  return unit.scalar_type() == ScalarType::Float ? backward<float>(g, u, inverse) : backward<double>(g, u, inverse);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CUDA, m) {
  m.impl("unit_rows_fwd", TORCH_BOX(&sslfast::unit_rows_fwd_cuda));
  m.impl("unit_rows_bwd", TORCH_BOX(&sslfast::unit_rows_bwd_cuda));
}
