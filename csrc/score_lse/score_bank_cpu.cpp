// Both gradients of a log-sum-exp over a bank of columns on the CPU. The columns are split into chunks, whose number
// depends on the shapes alone, and which are added up in one order: the result does not depend on the threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "score_bank_tiles.h"
#include "score_lse_pack.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "sslfast/rounding.h"

namespace sslfast {
namespace {

template <typename T>
BankKernels<T> kernels() {
  return SSLFAST_CHOOSE(score_bank_kernels<T>);
}

// Enough for the threads of a large machine; what the chunks add up takes no more memory than the columns.
constexpr int64_t most_chunks = 64;

template <typename T>
void copy_padded(const Tensor& values, int64_t padded, T* target) {
  const int64_t count = values.size(0);
  std::fill(std::copy_n(values.const_data_ptr<T>(), count, target), target + padded, T(0));
}

template <typename T>
std::tuple<Tensor, Tensor> backward(const Tensor& rows, const Tensor& columns, double temperature, const Tensor& grad,
                                    const Tensor& lse, bool of_columns) {
  const BankKernels<T> kernel = kernels<T>();
  const int64_t row_count = rows.size(0), column_count = columns.size(0), depth = rows.size(1);
  const int64_t padded = rounded_up(row_count, kernel.panel), width = rounded_up(depth, kernel.panel);
  const int64_t tiles = divided_up(column_count, kernel.tile);
  const int64_t chunks = std::clamp<int64_t>(column_count / std::max<int64_t>(1, row_count), 1,
                                             std::clamp<int64_t>(tiles, 1, most_chunks));
  const int64_t workers = std::clamp<int64_t>(torch::stable::get_num_threads(), 1, chunks);
  Tensor of_rows = torch::stable::new_empty(rows, {row_count, depth});
  Tensor of_bank = torch::stable::new_empty(rows, {of_columns ? column_count : 0, depth});
  BankProblem<T> problem{.row_count = row_count,
                         .column_count = column_count,
                         .padded_rows = padded,
                         .depth = depth,
                         .width = width,
                         .height = rounded_up(depth, kernel.group),
                         .rows = nullptr,
                         .row_panels = nullptr,
                         .columns = columns.const_data_ptr<T>(),
                         .column_stride = columns.stride(0),
                         .depth_stride = columns.stride(1),
                         .grad = nullptr,
                         .lse = nullptr,
                         .inverse_temperature = static_cast<T>(1 / temperature),
                         .of_columns = of_columns ? of_bank.mutable_data_ptr<T>() : nullptr};
  const int64_t size = problem.height * padded, scratch = kernel.scratch(problem);
  Tensor storage = torch::stable::new_empty(rows, {padded * (width + depth + 2) + chunks * size + workers * scratch});
  // Sizes of whole vectors first: the kernels' reads stay aligned.
  T* sums = storage.mutable_data_ptr<T>();
  T* scratch_data = sums + chunks * size;
  T* row_data = scratch_data + workers * scratch;
  T* panel_data = row_data + padded * width;
  T* side_data = panel_data + padded * depth;
  pack_rows(Matrix<T>(rows), padded, width, T(1), row_data);
  pack_panels(Matrix<T>(rows), padded / kernel.panel, kernel.panel, panel_data);
  copy_padded(grad, padded, side_data);
  copy_padded(lse, padded, side_data + padded);
  problem.rows = row_data;
  problem.row_panels = panel_data;
  problem.grad = side_data;
  problem.lse = side_data + padded;
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t chunk = worker * chunks / workers; chunk < (worker + 1) * chunks / workers; ++chunk) {
        T* sum = sums + chunk * size;
        std::fill_n(sum, size, T(0));
        for (int64_t tile = chunk * tiles / chunks; tile < (chunk + 1) * tiles / chunks; ++tile) {
          kernel.backward(problem, tile, scratch_data + worker * scratch, sum);
        }
      }
    }
  });
  T* gradient = of_rows.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, divided_up(row_count, kernel.lanes), 4, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) kernel.finish(problem, index, sums, chunks, gradient);
  });
  return {of_rows, of_bank};
}

void check_vector(const char* name, const Tensor& tensor, const Tensor& rows) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == rows.size(0) && tensor.scalar_type() == rows.scalar_type(),
                  "score_lse_bank_bwd: ", name, " must be (", rows.size(0), ",) in the dtype of the rows");
}

std::tuple<Tensor, Tensor> score_lse_bank_bwd_cpu(const Tensor& rows, const Tensor& columns, double temperature,
                                                  const Tensor& grad, const Tensor& lse, bool of_columns) {
  check_matrix("score_lse_bank_bwd", "rows", rows);
  check_matrix("score_lse_bank_bwd", "columns", columns);
  STD_TORCH_CHECK(columns.scalar_type() == rows.scalar_type() && columns.device() == rows.device() &&
                      columns.size(1) == rows.size(1),
                  "score_lse_bank_bwd: columns must have the dtype, device and width of the rows");
  STD_TORCH_CHECK(temperature > 0, "score_lse_bank_bwd: temperature must be > 0, got ", temperature);
  check_vector("grad", grad, rows);
  check_vector("lse", lse, rows);
  const Tensor g = torch::stable::contiguous(grad), l = torch::stable::contiguous(lse);
  return rows.scalar_type() == ScalarType::Float ? backward<float>(rows, columns, temperature, g, l, of_columns)
                                                 : backward<double>(rows, columns, temperature, g, l, of_columns);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("score_lse_bank_bwd", TORCH_BOX(&sslfast::score_lse_bank_bwd_cpu));
}
