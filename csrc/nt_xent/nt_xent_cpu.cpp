// NT-Xent on the CPU: packs the rows, then hands blocks of rows to the kernels of nt_xent_tiles.cpp. A row belongs to
// one thread and is summed in one order, so that the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "nt_xent_tiles.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"

namespace sslfast {
namespace {

template <typename T>
NtXentKernels<T> kernels() {
#if defined(__x86_64__)
  switch (cpu_capability()) {
    case Capability::avx512:
      return avx512::nt_xent_kernels<T>();
    case Capability::avx2:
      return avx2::nt_xent_kernels<T>();
    case Capability::portable:
      break;
  }
#endif
  return portable::nt_xent_kernels<T>();
}

int64_t rounded_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

void check_rows(const char* op, const Tensor& z, double temperature) {
  check_matrix(op, "z", z);
  STD_TORCH_CHECK(z.size(0) >= 2 && z.size(0) % 2 == 0, op, ": z must be (2N, D) with N > 0, got ", z.size(0), " rows");
  STD_TORCH_CHECK(temperature > 0, op, ": temperature must be > 0, got ", temperature);
}

// The rows in both layouts. `storage` keeps them alive.
template <typename T>
struct Packed {
  Tensor storage;
  NtXentProblem<T> problem;
};

template <typename T>
Packed<T> pack(const Tensor& z, double temperature, const NtXentKernels<T>& kernel) {
  const int64_t count = z.size(0), depth = z.size(1);
  const int64_t width = rounded_up(depth, kernel.panel);
  const int64_t row_count = std::max(rounded_up(count, kernel.block), rounded_up(count, kernel.tile));
  const int64_t panel_count = rounded_up(count, kernel.tile) / kernel.panel;
  Tensor storage = torch::stable::new_empty(z, {row_count * width + panel_count * kernel.panel * depth + row_count});
  T* rows = storage.mutable_data_ptr<T>();
  T* panels = rows + row_count * width;
  T* lse = panels + panel_count * kernel.panel * depth;
  const T* source = z.const_data_ptr<T>();
  // Copying is quick: below this, waking other threads costs more.
  const int64_t rows_per_task = std::max<int64_t>(1, (int64_t{1} << 18) / std::max<int64_t>(1, width));
  torch::stable::parallel_for(0, row_count, rows_per_task, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t used = row < count ? depth : 0;
      T* target = std::copy_n(source + (row < count ? row : 0) * depth, used, rows + row * width);
      std::fill_n(target, width - used, T(0));
    }
  });
  torch::stable::parallel_for(0, panel_count, std::max<int64_t>(1, rows_per_task / kernel.panel),
                              [=](int64_t begin, int64_t end) {
                                for (int64_t panel = begin; panel < end; ++panel) {
                                  T* target = panels + panel * kernel.panel * depth;
                                  for (int64_t column = 0; column < kernel.panel; ++column) {
                                    const int64_t row = panel * kernel.panel + column;
                                    for (int64_t d = 0; d < depth; ++d)
                                      target[d * kernel.panel + column] = row < count ? source[row * depth + d] : 0;
                                  }
                                }
                              });
  std::fill_n(lse, row_count, T(0));
  return {storage, {count, depth, width, rows, panels, lse, static_cast<T>(1 / temperature)}};
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& z, double temperature) {
  const NtXentKernels<T> kernel = kernels<T>();
  const Packed<T> packed = pack<T>(z, temperature, kernel);
  const NtXentProblem<T>& problem = packed.problem;
  Tensor loss = torch::stable::new_empty(z, {});
  Tensor lse = torch::stable::new_empty(z, {problem.count});
  Tensor row_loss = torch::stable::new_empty(z, {problem.count}, ScalarType::Double);
  T* lse_data = lse.mutable_data_ptr<T>();
  double* row_data = row_loss.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, rounded_up(problem.count, kernel.block) / kernel.block, 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t index = begin; index < end; ++index) {
                                  kernel.forward(problem, index, lse_data, row_data);
                                }
                              });
  double total = 0;
  for (int64_t row = 0; row < problem.count; ++row) total += row_data[row];
  *loss.mutable_data_ptr<T>() = static_cast<T>(total / problem.count);
  return {loss, lse};
}

template <typename T>
Tensor backward(const Tensor& grad, const Tensor& z, const Tensor& lse, double temperature) {
  const NtXentKernels<T> kernel = kernels<T>();
  Packed<T> packed = pack<T>(z, temperature, kernel);
  const NtXentProblem<T>& problem = packed.problem;
  std::copy_n(lse.const_data_ptr<T>(), problem.count, const_cast<T*>(problem.lse));
  const int64_t blocks = rounded_up(problem.count, kernel.block) / kernel.block;
  const int64_t block_size = kernel.block * problem.width;
  Tensor scratch = torch::stable::new_empty(z, {blocks * block_size});
  Tensor gradient = torch::stable::new_empty(z, {problem.count, problem.depth});
  T* scratch_data = scratch.mutable_data_ptr<T>();
  T* gradient_data = gradient.mutable_data_ptr<T>();
  const T scale = *grad.const_data_ptr<T>() * problem.inverse_temperature / static_cast<T>(problem.count);
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      T* block = scratch_data + index * block_size;
      kernel.backward(problem, index, scale, block);
      const int64_t rows = std::min(kernel.block, problem.count - index * kernel.block);
      for (int64_t row = 0; row < rows; ++row) {
        std::copy_n(block + row * problem.width, problem.depth,
                    gradient_data + (index * kernel.block + row) * problem.depth);
      }
    }
  });
  return gradient;
}

std::tuple<Tensor, Tensor> nt_xent_fwd_cpu(const Tensor& z, double temperature) {
  check_rows("nt_xent_fwd", z, temperature);
  const Tensor rows = torch::stable::contiguous(z);
  return z.scalar_type() == ScalarType::Float ? forward<float>(rows, temperature) : forward<double>(rows, temperature);
}

Tensor nt_xent_bwd_cpu(const Tensor& grad, const Tensor& z, const Tensor& lse, double temperature) {
  check_rows("nt_xent_bwd", z, temperature);
  check_like("nt_xent_bwd", "grad", grad, z, 0);
  check_like("nt_xent_bwd", "lse", lse, z, 1);
  const Tensor rows = torch::stable::contiguous(z);
  const Tensor sums = torch::stable::contiguous(lse);
  return z.scalar_type() == ScalarType::Float ? backward<float>(grad, rows, sums, temperature)
                                              : backward<double>(grad, rows, sums, temperature);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("nt_xent_fwd", TORCH_BOX(&sslfast::nt_xent_fwd_cpu));
  m.impl("nt_xent_bwd", TORCH_BOX(&sslfast::nt_xent_bwd_cpu));
}
