// The mixed edge on the CPU: schema, checks and memory; the passes are in mixed_edge_forward.cpp and _backward.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "mixed_edge_passes.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"

namespace sslfast {
namespace {

using Integers = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

// The problem, and what keeps its memory alive.
template <typename T>
struct Prepared {
  Tensors kept;
  EdgeProblem<T> problem;

  Prepared(const Tensor& x, const Tensor& alpha, const Tensors& weights, const std::optional<Tensor>& skip_mask,
           int64_t stride, int64_t k, const Integers& primitives, double eps, bool batch)
      : problem{plan_of(x, stride, k, primitives),
                SSLFAST_CHOOSE(edge_kernels<T>),
                eps,
                batch,
                nullptr,
                nullptr,
                {},
                nullptr,
                nullptr,
                nullptr} {
    problem.x = held(x);
    problem.alpha = held(alpha);
    for (const Tensor& weight : weights) problem.weights.push_back(held(weight));
    if (skip_mask.has_value()) problem.skip_mask = held(*skip_mask);
  }
  Prepared(const Prepared&) = delete;

  T* held(const Tensor& tensor) {
    kept.push_back(torch::stable::contiguous(tensor));
    return const_cast<T*>(kept.back().const_data_ptr<T>());
  }

  static EdgePlan plan_of(const Tensor& x, int64_t stride, int64_t k, const Integers& primitives) {
    const int64_t shape[4] = {x.size(0), x.size(1), x.size(2), x.size(3)};
    return EdgePlan(shape, edge_lanes<T>, k, stride, primitives);
  }
};

void check(const char* op, const Tensor& x, const Tensor& alpha, const Tensors& weights,
           const std::optional<Tensor>& skip_mask, int64_t stride, int64_t k, const Integers& primitives) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must have four dimensions, got ", x.dim());
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, op,
                  ": x must be float32 or float64");
  STD_TORCH_CHECK(x.size(0) > 0 && x.size(2) > 0 && x.size(3) > 0, op, ": x must not be empty");
  STD_TORCH_CHECK(stride == 1 || stride == 2, op, ": stride must be 1 or 2, got ", stride);
  STD_TORCH_CHECK(k > 0 && x.size(1) > 0 && x.size(1) % k == 0, op, ": x has ", x.size(1), " channels, k is ", k);
  const int64_t c = x.size(1) / k;
  bool seen[8] = {};
  for (const int64_t one : primitives) {
    STD_TORCH_CHECK(one >= 0 && one < 8 && !seen[one], op, ": there is no primitive ", one, ", or it is there twice");
    seen[one] = true;
  }
  const bool even = x.size(2) % 2 == 0 && x.size(3) % 2 == 0;
  STD_TORCH_CHECK(stride == 1 || even || (k == 1 && !seen[3]), op, ": stride 2 needs even rows and columns");
  STD_TORCH_CHECK(stride == 1 || !seen[3] || c % 2 == 0, op, ": a factorised reduce needs an even number of channels");
  const auto fits = [&](const Tensor& tensor) { return tensor.scalar_type() == x.scalar_type(); };
  STD_TORCH_CHECK(fits(alpha) && alpha.dim() == 1 && alpha.size(0) == static_cast<int64_t>(primitives.size()), op,
                  ": alpha must hold one number per primitive");
  const int64_t shape[4] = {x.size(0), x.size(1), x.size(2), x.size(3)};
  const EdgePlan plan(shape, 1, k, stride, primitives);
  STD_TORCH_CHECK(weights.size() == plan.weight_sizes.size(), op, ": there must be ", plan.weight_sizes.size(),
                  " weights, got ", weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    STD_TORCH_CHECK(fits(weights[i]) && weights[i].numel() == plan.weight_sizes[i], op, ": weight ", i, " must hold ",
                    plan.weight_sizes[i], " numbers of x's type");
  }
  if (skip_mask.has_value()) {
    const Tensor& mask = *skip_mask;
    STD_TORCH_CHECK(fits(mask) && mask.dim() == 4 && mask.size(0) == x.size(0) && mask.size(1) == c &&
                        mask.size(2) == x.size(2) && mask.size(3) == x.size(3) && stride == 1,
                    op, ": skip_mask must have the shape of the channels that are mixed, and stride must be 1");
  }
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& alpha, const Tensors& weights,
                                           const Tensors& running, const std::optional<Tensor>& skip_mask,
                                           int64_t stride, int64_t k, const Integers& primitives, double eps) {
  Prepared<T> prepared(x, alpha, weights, skip_mask, stride, k, primitives, eps, running.empty());
  EdgeProblem<T>& problem = prepared.problem;
  const EdgePlan& plan = problem.plan;
  STD_TORCH_CHECK(running.empty() || static_cast<int64_t>(running.size()) == 2 * plan.norms,
                  "mixed_edge_fwd: running must hold ", 2 * plan.norms, " tensors, got ", running.size());
  Tensor out = torch::stable::new_empty(x, {plan.batch, plan.channels, plan.inner_rows, plan.inner_columns});
  Tensor statistics = torch::stable::new_empty(x, {plan.norms, 2, plan.c});
  Tensor saved = torch::stable::new_empty(x, {problem.saved().size()});
  problem.statistics = statistics.mutable_data_ptr<T>();
  problem.kept = saved.mutable_data_ptr<T>();
  for (size_t i = 0; i < running.size(); ++i) {
    STD_TORCH_CHECK(running[i].scalar_type() == x.scalar_type() && running[i].numel() == plan.c,
                    "mixed_edge_fwd: running[", i, "] must hold ", plan.c, " numbers of x's type");
    const Tensor one = torch::stable::contiguous(running[i]);
    for (int64_t channel = 0; channel < plan.c; ++channel) {
      problem.statistics[static_cast<int64_t>(i) * plan.c + channel] = one.const_data_ptr<T>()[channel];
    }
  }
  edge_forward(problem, out.mutable_data_ptr<T>());
  return {out, statistics, saved};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& alpha,
                                            const Tensors& weights, const std::optional<Tensor>& skip_mask,
                                            const Tensor& statistics, const Tensor& saved, bool batch, int64_t stride,
                                            int64_t k, const Integers& primitives, double eps) {
  Prepared<T> prepared(x, alpha, weights, skip_mask, stride, k, primitives, eps, batch);
  EdgeProblem<T>& problem = prepared.problem;
  const EdgePlan& plan = problem.plan;
  const char* op = "mixed_edge_bwd";
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.dim() == 4 && grad.size(0) == plan.batch &&
                      grad.size(1) == plan.channels && grad.size(2) == plan.inner_rows &&
                      grad.size(3) == plan.inner_columns,
                  op, ": grad must have the shape and type of the output");
  STD_TORCH_CHECK(statistics.scalar_type() == x.scalar_type() && statistics.numel() == 2 * plan.norms * plan.c, op,
                  ": statistics must be those of mixed_edge_fwd");
  STD_TORCH_CHECK(saved.scalar_type() == x.scalar_type() && saved.numel() == problem.saved().size(), op,
                  ": saved must be that of mixed_edge_fwd");
  problem.statistics = prepared.held(statistics);
  problem.kept = prepared.held(saved);
  int64_t numbers = 0, chains = 0;
  for (const int64_t size : plan.weight_sizes) numbers += size;
  for (const EdgeUnit& unit : plan.units) chains += unit.next >= 0;
  const int64_t planes = plan.groups * plan.c * plan.inner() * edge_lanes<T>;
  Tensor of_x = torch::stable::new_empty(x, {plan.batch, plan.channels, plan.rows, plan.columns});
  Tensor of_alpha = torch::stable::new_empty(x, {plan.primitives});
  Tensor of_weights = torch::stable::new_empty(x, {numbers});
  Tensor scratch = torch::stable::new_empty(x, {(1 + chains) * planes});
  T* lanes = scratch.mutable_data_ptr<T>();
  edge_backward(problem, prepared.held(grad), lanes, lanes + planes, of_x.mutable_data_ptr<T>(),
                of_alpha.mutable_data_ptr<T>(), of_weights.mutable_data_ptr<T>());
  return {of_x, of_alpha, of_weights};
}

std::tuple<Tensor, Tensor, Tensor> mixed_edge_fwd_cpu(const Tensor& x, const Tensor& alpha, Tensors weights,
                                                      Tensors running, std::optional<Tensor> skip_mask, int64_t stride,
                                                      int64_t k, Integers primitives, double eps) {
  check("mixed_edge_fwd", x, alpha, weights, skip_mask, stride, k, primitives);
  return x.scalar_type() == ScalarType::Float
             ? forward<float>(x, alpha, weights, running, skip_mask, stride, k, primitives, eps)
             : forward<double>(x, alpha, weights, running, skip_mask, stride, k, primitives, eps);
}

std::tuple<Tensor, Tensor, Tensor> mixed_edge_bwd_cpu(const Tensor& grad, const Tensor& x, const Tensor& alpha,
                                                      Tensors weights, std::optional<Tensor> skip_mask,
                                                      const Tensor& statistics, const Tensor& saved, bool batch,
                                                      int64_t stride, int64_t k, Integers primitives, double eps) {
  check("mixed_edge_bwd", x, alpha, weights, skip_mask, stride, k, primitives);
  return x.scalar_type() == ScalarType::Float
             ? backward<float>(grad, x, alpha, weights, skip_mask, statistics, saved, batch, stride, k, primitives, eps)
             : backward<double>(grad, x, alpha, weights, skip_mask, statistics, saved, batch, stride, k, primitives,
                                eps);
}

template <typename T>
void track(Tensors& running, const Tensor& statistics, double momentum, int64_t count) {
  const Tensor held = torch::stable::contiguous(statistics);
  const T* of_batch = held.const_data_ptr<T>();
  const int64_t c = statistics.size(2);
  for (size_t i = 0; i < running.size(); ++i) {
    T* to = running[i].mutable_data_ptr<T>();
    const double unbiased = i % 2 == 0 ? 1.0 : static_cast<double>(count) / static_cast<double>(count - 1);
    for (int64_t channel = 0; channel < c; ++channel) {
      const double next = unbiased * of_batch[static_cast<int64_t>(i) * c + channel];
      to[channel] = static_cast<T>((1 - momentum) * to[channel] + momentum * next);
    }
  }
}

void mixed_edge_track_cpu(Tensors running, const Tensor& statistics, double momentum, int64_t count) {
  const char* op = "mixed_edge_track";
  STD_TORCH_CHECK(statistics.dim() == 3 && statistics.size(1) == 2 &&
                      static_cast<int64_t>(running.size()) == 2 * statistics.size(0) && count > 1,
                  op, ": running must hold a mean and a variance for each of the statistics, of more than one number");
  for (const Tensor& one : running) {
    STD_TORCH_CHECK(
        one.scalar_type() == statistics.scalar_type() && one.numel() == statistics.size(2) && one.is_contiguous(), op,
        ": running must be contiguous and have the statistics' type and number of channels");
  }
  if (statistics.scalar_type() == ScalarType::Float) {
    track<float>(running, statistics, momentum, count);
  } else {
    track<double>(running, statistics, momentum, count);
  }
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("mixed_edge_fwd", TORCH_BOX(&sslfast::mixed_edge_fwd_cpu));
  m.impl("mixed_edge_bwd", TORCH_BOX(&sslfast::mixed_edge_bwd_cpu));
  m.impl("mixed_edge_track", TORCH_BOX(&sslfast::mixed_edge_track_cpu));
}
