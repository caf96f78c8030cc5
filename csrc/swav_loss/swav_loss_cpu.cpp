// The SwAV loss on the CPU: the codes' potentials come from Sinkhorn-Knopp (csrc/sinkhorn), everything else happens row
// by row in swav_loss_rows.cpp. Rows are summed in one order, whatever the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "sinkhorn/sinkhorn.h"
#include "sslfast/check.h"
#include "swav_loss_rows.h"

namespace sslfast {
namespace {

template <typename T>
SwavKernels<T> swav_kernels() {
  return SSLFAST_CHOOSE(swav_kernels<T>);
}

void check_views(const char* op, const std::vector<Tensor>& high, const std::vector<Tensor>& low) {
  STD_TORCH_CHECK(!high.empty() && high.size() + low.size() >= 2, op,
                  ": there must be one high-resolution view and another view, got ", high.size(), " and ", low.size());
  check_matrix(op, "high[0]", high[0]);
  STD_TORCH_CHECK(high[0].size(0) > 0 && high[0].size(1) > 0, op, ": views must not be empty");
  for (const Tensor& view : high) check_like(op, "a view", view, high[0], 2);
  for (const Tensor& view : low) check_like(op, "a view", view, high[0], 2);
}

void check_matrix_of(const char* op, const char* name, const Tensor& tensor, const Tensor& like, size_t rows,
                     int64_t columns) {
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type() && tensor.dim() == 2 &&
                      tensor.size(0) == static_cast<int64_t>(rows) && tensor.size(1) == columns,
                  op, ": ", name, " must be (", rows, ", ", columns, ") of the views' dtype");
}

std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(torch::stable::contiguous(tensor));
  return result;
}

// The problem, and what keeps its memory alive.
template <typename T>
struct Prepared {
  std::vector<Tensor> views;
  std::vector<const T*> rows;
  Tensor potential;
  SwavProblem<T> problem;

  Prepared(const std::vector<Tensor>& high, const std::vector<Tensor>& low, const Tensor& natural, bool normalised,
           double temperature, double epsilon)
      : views(contiguous(high)) {
    for (const Tensor& view : low) views.push_back(torch::stable::contiguous(view));
    for (const Tensor& view : views) rows.push_back(view.const_data_ptr<T>());
    const int64_t count = static_cast<int64_t>(high.size()), columns = high[0].size(1), width = padded(columns);
    potential = torch::stable::new_empty(high[0], {count, width});
    const Tensor given = torch::stable::contiguous(natural);
    const T* from = given.const_data_ptr<T>();
    T* to = potential.mutable_data_ptr<T>();
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < columns; ++k) {
        to[i * width + k] = static_cast<T>(from[i * columns + k] * binary_logarithm_of_e);
      }
      std::fill(to + i * width + columns, to + (i + 1) * width, T(0));
    }
    problem = {rows.data(),
               count,
               static_cast<int64_t>(views.size()),
               high[0].size(0),
               columns,
               static_cast<T>(temperature),
               static_cast<T>(binary_logarithm_of_e / epsilon),
               static_cast<T>(binary_logarithm_of_e / temperature),
               to,
               width,
               normalised,
               static_cast<int64_t>(views.size() * sizeof(T)) * high[0].size(0) * columns >= bytes_to_stream};
  }
  Prepared(const Prepared&) = delete;

  int64_t rows_per_task() const { return blocks_per_task(problem.count * problem.columns); }
};

template <typename T>
Tensor potentials(const std::vector<Tensor>& high, const std::vector<Tensor>& queue, int64_t iterations,
                  double epsilon) {
  const int64_t count = static_cast<int64_t>(high.size()), columns = high[0].size(1), width = padded(columns);
  const std::vector<Tensor> scores = contiguous(high), more = contiguous(queue);
  std::vector<ScoreParts<T>> sets(high.size());
  const T scale = static_cast<T>(binary_logarithm_of_e / epsilon);
  for (size_t i = 0; i < high.size(); ++i) {
    sets[i].push_back({scores[i].const_data_ptr<T>(), scores[i].size(0), columns, scale});
    if (!more.empty()) sets[i].push_back({more[i].const_data_ptr<T>(), more[i].size(0), columns, scale});
  }
  const AlignedRow<T> binary(count * width);
  std::fill_n(binary.data(), count * width, T(0));
  sinkhorn_potentials<T>(sets, iterations, binary.data(), high[0]);
  Tensor result = torch::stable::new_empty(high[0], {count, columns});
  T* target = result.mutable_data_ptr<T>();
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < columns; ++k) {
      target[i * columns + k] = static_cast<T>(binary.data()[i * width + k] / binary_logarithm_of_e);
    }
  }
  return result;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const std::vector<Tensor>& high, const std::vector<Tensor>& low,
                                           const Tensor& potential, bool normalised, double temperature,
                                           double epsilon) {
  const Prepared<T> prepared(high, low, potential, normalised, temperature, epsilon);
  const SwavProblem<T>& problem = prepared.problem;
  const SwavKernels<T> kernels = swav_kernels<T>();
  Tensor loss = torch::stable::new_empty(high[0], {});
  Tensor lse = torch::stable::new_empty(high[0], {problem.count, problem.rows});
  Tensor code_lse = torch::stable::new_empty(high[0], {problem.high, problem.rows});
  T* lse_data = lse.mutable_data_ptr<T>();
  T* code_data = code_lse.mutable_data_ptr<T>();
  std::vector<double> row_loss(problem.rows);
  torch::stable::parallel_for(0, problem.rows, prepared.rows_per_task(), [&](int64_t begin, int64_t end) {
    const AlignedRow<T> scratch(kernels.scratch(problem.high, problem.count));
    for (int64_t row = begin; row < end; ++row) {
      row_loss[row] = kernels.forward(problem, row, scratch.data(), lse_data, code_data);
    }
  });
  double total = 0;
  for (const double one : row_loss) total += one;
  const double pairs = static_cast<double>(problem.high * (problem.count - 1));
  *loss.mutable_data_ptr<T>() = static_cast<T>(total / (pairs * problem.rows));
  return {loss, lse, code_lse};
}

template <typename T>
Tensor backward(const Tensor& grad, const std::vector<Tensor>& high, const std::vector<Tensor>& low,
                const Tensor& potential, const Tensor& lse, const Tensor& code_lse, bool normalised, double temperature,
                double epsilon) {
  const Prepared<T> prepared(high, low, potential, normalised, temperature, epsilon);
  const SwavProblem<T>& problem = prepared.problem;
  const SwavKernels<T> kernels = swav_kernels<T>();
  const Tensor own_lse = torch::stable::contiguous(lse), own_code_lse = torch::stable::contiguous(code_lse);
  Tensor gradient = torch::stable::new_empty(high[0], {problem.count, problem.rows, problem.columns});
  T* target = gradient.mutable_data_ptr<T>();
  const T* lse_data = own_lse.const_data_ptr<T>();
  const T* code_data = own_code_lse.const_data_ptr<T>();
  const double pairs = static_cast<double>(problem.high * (problem.count - 1));
  const T factor = static_cast<T>(*grad.const_data_ptr<T>() / (pairs * problem.rows * temperature));
  torch::stable::parallel_for(0, problem.rows, prepared.rows_per_task(), [&](int64_t begin, int64_t end) {
    const AlignedRow<T> scratch(kernels.scratch(problem.high, problem.count));
    for (int64_t row = begin; row < end; ++row) {
      kernels.backward(problem, row, lse_data, code_data, factor, scratch.data(), target);
    }
  });
  return gradient;
}

void check_constants(const char* op, double temperature, double epsilon) {
  STD_TORCH_CHECK(temperature > 0, op, ": temperature must be > 0, got ", temperature);
  STD_TORCH_CHECK(epsilon > 0, op, ": epsilon must be > 0, got ", epsilon);
}

Tensor swav_potentials_cpu(std::vector<Tensor> high, std::vector<Tensor> queue, int64_t iterations, double epsilon) {
  const char* op = "swav_potentials";
  STD_TORCH_CHECK(!high.empty() && (queue.empty() || queue.size() == high.size()), op,
                  ": there must be a view, and no queue or one per view, got ", high.size(), " and ", queue.size());
  STD_TORCH_CHECK(iterations >= 0 && epsilon > 0, op, ": iterations must be >= 0 and epsilon > 0");
  check_matrix(op, "high[0]", high[0]);
  STD_TORCH_CHECK(high[0].size(0) > 0 && high[0].size(1) > 0, op, ": views must not be empty");
  for (const Tensor& view : high) check_like(op, "a view", view, high[0], 2);
  for (const Tensor& one : queue) check_matrix_of(op, "a queue", one, high[0], one.size(0), high[0].size(1));
  return high[0].scalar_type() == ScalarType::Float ? potentials<float>(high, queue, iterations, epsilon)
                                                    : potentials<double>(high, queue, iterations, epsilon);
}

std::tuple<Tensor, Tensor, Tensor> swav_loss_fwd_cpu(std::vector<Tensor> high, std::vector<Tensor> low,
                                                     const Tensor& potential, bool normalised, double temperature,
                                                     double epsilon) {
  const char* op = "swav_loss_fwd";
  check_views(op, high, low);
  check_constants(op, temperature, epsilon);
  check_matrix_of(op, "potential", potential, high[0], high.size(), high[0].size(1));
  return high[0].scalar_type() == ScalarType::Float
             ? forward<float>(high, low, potential, normalised, temperature, epsilon)
             : forward<double>(high, low, potential, normalised, temperature, epsilon);
}

Tensor swav_loss_bwd_cpu(const Tensor& grad, std::vector<Tensor> high, std::vector<Tensor> low, const Tensor& potential,
                         const Tensor& lse, const Tensor& code_lse, bool normalised, double temperature,
                         double epsilon) {
  const char* op = "swav_loss_bwd";
  check_views(op, high, low);
  check_constants(op, temperature, epsilon);
  check_like(op, "grad", grad, high[0], 0);
  check_matrix_of(op, "potential", potential, high[0], high.size(), high[0].size(1));
  check_matrix_of(op, "lse", lse, high[0], high.size() + low.size(), high[0].size(0));
  check_matrix_of(op, "code_lse", code_lse, high[0], high.size(), high[0].size(0));
  return high[0].scalar_type() == ScalarType::Float
             ? backward<float>(grad, high, low, potential, lse, code_lse, normalised, temperature, epsilon)
             : backward<double>(grad, high, low, potential, lse, code_lse, normalised, temperature, epsilon);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("swav_potentials", TORCH_BOX(&sslfast::swav_potentials_cpu));
  m.impl("swav_loss_fwd", TORCH_BOX(&sslfast::swav_loss_fwd_cpu));
  m.impl("swav_loss_bwd", TORCH_BOX(&sslfast::swav_loss_bwd_cpu));
}
