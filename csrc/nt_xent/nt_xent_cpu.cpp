// NT-Xent on the CPU: packs the rows into blocks, then hands pairs of blocks to the kernels of nt_xent_tiles.cpp. Every
// sum has one order, so that the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "nt_xent_tiles.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "sslfast/rounding.h"

namespace sslfast {
namespace {

// Below this temperature exp(-2 / temperature) leaves float32, and with it the sum of a row without near neighbours.
constexpr double lowest_temperature = 0.025;

template <typename T>
NtXentKernels<T> kernels() {
  return SSLFAST_CHOOSE(nt_xent_kernels<T>);
}

// Blocks of 256 rows and their gradients stay in a core's cache; eight or more give several threads work; not more
// than 128, because the forward pass keeps one sum per row and block.
int64_t block_of(int64_t count, int64_t panel) {
  const int64_t rows = std::max(std::min<int64_t>(256, rounded_up(count, 8) / 8), rounded_up(count, 128) / 128);
  return rounded_up(std::max<int64_t>(1, rows), panel);
}

bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Half || tensor.scalar_type() == ScalarType::BFloat16;
}

// Contiguous, and half precision as float32.
Tensor readable(const Tensor& tensor) {
  return torch::stable::contiguous(is_half(tensor) ? torch::stable::to(tensor, ScalarType::Float) : tensor);
}

void check_views(const char* op, const Tensor& z0, const Tensor& z1, double temperature) {
  STD_TORCH_CHECK(z0.dim() == 2, op, ": z0 must have two dimensions, got ", z0.dim());
  STD_TORCH_CHECK(is_half(z0) || z0.scalar_type() == ScalarType::Float || z0.scalar_type() == ScalarType::Double, op,
                  ": z0 must be float32, float64, float16 or bfloat16");
  check_like(op, "z1", z1, z0, 2);
  STD_TORCH_CHECK(z0.size(0) >= 1, op, ": z0 must be (N, D) with N > 0, got 0 rows");
  STD_TORCH_CHECK(temperature >= lowest_temperature, op, ": temperature must be at least ", lowest_temperature,
                  ", got ", temperature);
}

// The unit rows of both views in the layouts of the kernels. `storage` keeps them alive.
template <typename T>
struct Packed {
  Tensor storage;
  NtXentProblem<T> problem;
  int64_t blocks;
  int64_t slices_size;
};

template <typename T>
Packed<T> pack(const Tensor& z0, const Tensor& z1, double temperature, const NtXentKernels<T>& kernel,
               T* inverse_norm) {
  const int64_t half = z0.size(0), count = 2 * half, depth = z0.size(1), panel = kernel.panel;
  const int64_t block = block_of(count, panel);
  const int64_t padded = rounded_up(count, block);
  const int64_t slices_size = rounded_up(depth, panel) * padded;
  Tensor storage = torch::stable::new_empty(z0, {padded * depth + slices_size});
  T* panels = storage.mutable_data_ptr<T>();
  T* slices = panels + padded * depth;
  const T* first = z0.const_data_ptr<T>();
  const T* second = z1.const_data_ptr<T>();
  // Packing is quick: below this, waking other threads costs more.
  const int64_t panels_per_task = std::max<int64_t>(1, (int64_t{1} << 14) / std::max<int64_t>(1, depth * panel));
  torch::stable::parallel_for(0, padded / panel, panels_per_task, [=](int64_t begin, int64_t end) {
    std::vector<const T*> rows(panel);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t start = index * panel;
      const int64_t used = std::clamp<int64_t>(count - start, 0, panel);
      for (int64_t k = 0; k < used; ++k) {
        const int64_t row = start + k;
        rows[k] = row < half ? first + row * depth : second + (row - half) * depth;
      }
      kernel.pack(rows.data(), used, start, depth, padded, panels, slices, inverse_norm);
    }
  });
  return {storage,
          {count, depth, padded, block, panels, slices, static_cast<T>(1 / temperature)},
          padded / block,
          slices_size};
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& z0, const Tensor& z1, double temperature) {
  const NtXentKernels<T> kernel = kernels<T>();
  Tensor loss = torch::stable::new_empty(z0, {});
  Tensor lse = torch::stable::new_empty(z0, {2 * z0.size(0)});
  Tensor norms = torch::stable::new_empty(z0, {2 * z0.size(0)});
  const Packed<T> packed = pack<T>(z0, z1, temperature, kernel, norms.mutable_data_ptr<T>());
  const NtXentProblem<T>& problem = packed.problem;
  const int64_t blocks = packed.blocks, block = problem.block, padded = problem.padded;
  Tensor scratch = torch::stable::new_empty(z0, {(blocks + 1) * padded});
  T* positives = scratch.mutable_data_ptr<T>();
  T* sums = positives + padded;  // (block that the other side of the pair comes from, row)
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t row = 0; row < blocks; ++row) {
    for (int64_t column = row; column < blocks; ++column) pairs.emplace_back(row, column);
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(pairs.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const auto [row, column] = pairs[index];
      kernel.forward(problem, row, column, sums + column * padded + row * block, sums + row * padded + column * block,
                     positives);
    }
  });
  T* lse_data = lse.mutable_data_ptr<T>();
  double total = 0;
  for (int64_t row = 0; row < problem.count; ++row) {
    double sum = 0;
    for (int64_t other = 0; other < blocks; ++other) sum += sums[other * padded + row];
    const double value = 1 / temperature + std::log(sum);
    lse_data[row] = static_cast<T>(value);
    total += value - positives[row];
  }
  *loss.mutable_data_ptr<T>() = static_cast<T>(total / problem.count);
  return {loss, lse};
}

// Rounds in which every block meets at most one other, so that no two threads add to the same rows: the circle method
// of a tournament, and a last round of each block with itself.
std::vector<std::vector<std::pair<int64_t, int64_t>>> rounds_of(int64_t blocks) {
  std::vector<std::vector<std::pair<int64_t, int64_t>>> rounds;
  const int64_t players = rounded_up(blocks, 2), circle = players - 1;
  for (int64_t round = 0; round < circle; ++round) {
    std::vector<std::pair<int64_t, int64_t>> pairs;
    for (int64_t k = 0; k < players / 2; ++k) {
      const int64_t one = k == 0 ? players - 1 : (round + k) % circle;
      const int64_t other = (round - k + circle) % circle;
      if (one < blocks && other < blocks) pairs.emplace_back(std::min(one, other), std::max(one, other));
    }
    if (!pairs.empty()) rounds.push_back(std::move(pairs));
  }
  rounds.emplace_back();
  for (int64_t block = 0; block < blocks; ++block) rounds.back().emplace_back(block, block);
  return rounds;
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& z0, const Tensor& z1, const Tensor& lse,
                                    double temperature) {
  const NtXentKernels<T> kernel = kernels<T>();
  const int64_t half = z0.size(0), count = 2 * half, depth = z0.size(1);
  Tensor norms = torch::stable::new_empty(z0, {count});
  T* inverse_norm = norms.mutable_data_ptr<T>();
  const Packed<T> packed = pack<T>(z0, z1, temperature, kernel, inverse_norm);
  const NtXentProblem<T>& problem = packed.problem;
  Tensor scratch = torch::stable::new_zeros(z0, {packed.slices_size + problem.padded});
  T* gradient = scratch.mutable_data_ptr<T>();
  T* inverse_sums = gradient + packed.slices_size;
  const T* lse_data = lse.const_data_ptr<T>();
  for (int64_t row = 0; row < count; ++row) inverse_sums[row] = std::exp(1 / temperature - lse_data[row]);
  for (const auto& pairs : rounds_of(packed.blocks)) {
    torch::stable::parallel_for(0, static_cast<int64_t>(pairs.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        kernel.backward(problem, pairs[index].first, pairs[index].second, inverse_sums, gradient);
      }
    });
  }
  Tensor grad0 = torch::stable::new_empty(z0, {half, depth});
  Tensor grad1 = torch::stable::new_empty(z0, {half, depth});
  T* first = grad0.mutable_data_ptr<T>();
  T* second = grad1.mutable_data_ptr<T>();
  const T scale = *grad.const_data_ptr<T>() * problem.inverse_temperature / static_cast<T>(count);
  const int64_t rows_per_task = std::max<int64_t>(1, (int64_t{1} << 15) / std::max<int64_t>(1, depth));
  torch::stable::parallel_for(0, count, rows_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* result = row < half ? first + row * depth : second + (row - half) * depth;
      kernel.finish(problem, row, gradient, scale, inverse_norm[row], result);
    }
  });
  return {grad0, grad1};
}

std::tuple<Tensor, Tensor> nt_xent_fwd_cpu(const Tensor& z0, const Tensor& z1, double temperature) {
  check_views("nt_xent_fwd", z0, z1, temperature);
  const Tensor first = readable(z0), second = readable(z1);
  return first.scalar_type() == ScalarType::Float ? forward<float>(first, second, temperature)
                                                  : forward<double>(first, second, temperature);
}

std::tuple<Tensor, Tensor> nt_xent_bwd_cpu(const Tensor& grad, const Tensor& z0, const Tensor& z1, const Tensor& lse,
                                           double temperature) {
  check_views("nt_xent_bwd", z0, z1, temperature);
  const Tensor first = readable(z0), second = readable(z1), sums = torch::stable::contiguous(lse);
  STD_TORCH_CHECK(grad.dim() == 0 && grad.scalar_type() == first.scalar_type(),
                  "nt_xent_bwd: grad must be a scalar in the dtype of the loss");
  STD_TORCH_CHECK(lse.dim() == 1 && lse.size(0) == 2 * z0.size(0) && lse.scalar_type() == first.scalar_type(),
                  "nt_xent_bwd: lse must be (2N) in the dtype of the loss");
  auto [grad0, grad1] = first.scalar_type() == ScalarType::Float
                            ? backward<float>(grad, first, second, sums, temperature)
                            : backward<double>(grad, first, second, sums, temperature);
  if (!is_half(z0)) return {grad0, grad1};
  return {torch::stable::to(grad0, z0.scalar_type()), torch::stable::to(grad1, z0.scalar_type())};
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("nt_xent_fwd", TORCH_BOX(&sslfast::nt_xent_fwd_cpu));
  m.impl("nt_xent_bwd", TORCH_BOX(&sslfast::nt_xent_bwd_cpu));
}
