// Log-sum-exp of scores on the CPU: packs rows and columns, then hands blocks of rows to score_lse_tiles.cpp. A row
// belongs to one thread and is summed in one order, so that the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "score_lse_pack.h"
#include "score_lse_tiles.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "sslfast/rounding.h"

namespace sslfast {
namespace {

template <typename T>
ScoreKernels<T> kernels() {
  return SSLFAST_CHOOSE(score_lse_kernels<T>);
}

// As many rows as there are for each thread: large blocks read the columns seldom. What a row's sums are does not
// depend on its block.
template <typename T>
int64_t block_of(int64_t row_count, const ScoreKernels<T>& kernel) {
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  return std::clamp(rounded_up((row_count + threads - 1) / threads, kernel.group), kernel.group, kernel.block);
}

void check_scores(const char* op, const Tensor& rows, const Tensor& columns, const std::optional<Tensor>& row_label,
                  const std::optional<Tensor>& column_label, double temperature) {
  check_matrix(op, "rows", rows);
  check_matrix(op, "columns", columns);
  STD_TORCH_CHECK(columns.scalar_type() == rows.scalar_type() && columns.device() == rows.device() &&
                      columns.size(1) == rows.size(1),
                  op, ": columns must have the dtype, device and width of the rows");
  STD_TORCH_CHECK(temperature > 0, op, ": temperature must be > 0, got ", temperature);
  STD_TORCH_CHECK(row_label.has_value() == column_label.has_value(), op, ": both sides need labels, or neither");
  if (!row_label.has_value()) return;
  STD_TORCH_CHECK(row_label->scalar_type() == ScalarType::Long && row_label->dim() == 1 &&
                      row_label->size(0) == rows.size(0) && column_label->scalar_type() == ScalarType::Long &&
                      column_label->dim() == 1 && column_label->size(0) == columns.size(0),
                  op, ": labels must be int64, one for each row and one for each column");
}

// Labels in the width of the scores, numbered by their first appearance: those of neighbours are close.
template <typename T>
class Labels {
 public:
  Labels(const Tensor& of_rows, const Tensor& of_columns, int64_t block, const ScoreKernels<T>& kernel) {
    const Tensor rows = torch::stable::contiguous(of_rows), columns = torch::stable::contiguous(of_columns);
    std::unordered_map<int64_t, Label> numbers;
    const auto number = [&](int64_t label) {
      return numbers.try_emplace(label, static_cast<Label>(numbers.size())).first->second;
    };
    const int64_t column_count = columns.size(0), row_count = rows.size(0);
    columns_.assign(rounded_up(column_count, kernel.tile), Label(-1));
    rows_.assign(rounded_up(row_count, block), Label(-2));
    for (int64_t k = 0; k < column_count; ++k) columns_[k] = number(columns.const_data_ptr<int64_t>()[k]);
    for (int64_t k = 0; k < row_count; ++k) rows_[k] = number(rows.const_data_ptr<int64_t>()[k]);
    for (int64_t start = 0; start < column_count; start += kernel.tile) {
      const auto first = columns_.begin() + start;
      const auto range = std::minmax_element(first, first + std::min(kernel.tile, column_count - start));
      lowest_.push_back(*range.first);
      highest_.push_back(*range.second);
    }
  }

  void hand_to(ScoreProblem<T>& problem) const {
    problem.row_labels = rows_.data();
    problem.column_labels = columns_.data();
    problem.lowest_label = lowest_.data();
    problem.highest_label = highest_.data();
  }

 private:
  using Label = typename LabelOf<T>::type;
  std::vector<Label> rows_, columns_, lowest_, highest_;
};

// Everything that the kernels read. The tensor and the labels keep it alive.
template <typename T>
struct Packed {
  Tensor storage;
  std::optional<Labels<T>> labels;
  ScoreProblem<T> problem;
};

template <typename T>
Packed<T> pack(const Tensor& rows, const Tensor& columns, const std::optional<Tensor>& row_label,
               const std::optional<Tensor>& column_label, int64_t diagonal, double temperature, bool for_backward,
               const ScoreKernels<T>& kernel) {
  const int64_t row_count = rows.size(0), column_count = columns.size(0), depth = rows.size(1);
  const int64_t width = rounded_up(depth, kernel.panel);
  const int64_t block = block_of(row_count, kernel);
  const int64_t padded_rows = rounded_up(row_count, block), padded = rounded_up(column_count, kernel.tile);
  const int64_t columns_size = for_backward ? padded * width : 0;
  Packed<T> packed{torch::stable::new_empty(rows, {padded_rows * width + padded * depth + columns_size}), {}, {}};
  T* row_data = packed.storage.template mutable_data_ptr<T>();
  T* panel_data = row_data + padded_rows * width;
  T* column_data = panel_data + padded * depth;
  pack_rows(Matrix<T>(rows), padded_rows, width, static_cast<T>(1 / temperature), row_data);
  pack_panels(Matrix<T>(columns), padded / kernel.panel, kernel.panel, panel_data);
  if (for_backward) pack_rows(Matrix<T>(columns), padded, width, T(1), column_data);
  ScoreProblem<T>& problem = packed.problem;
  problem = {.row_count = row_count,
             .column_count = column_count,
             .depth = depth,
             .width = width,
             .block = block,
             .rows = row_data,
             .panels = panel_data,
             .columns = column_data,
             .diagonal = diagonal,
             .inverse_temperature = static_cast<T>(1 / temperature)};
  if (row_label.has_value()) {
    packed.labels.emplace(*row_label, *column_label, block, kernel);
    packed.labels->hand_to(problem);
  }
  return packed;
}

template <typename T>
std::tuple<Tensor, Tensor> forward(const Tensor& rows, const Tensor& columns, const std::optional<Tensor>& row_label,
                                   const std::optional<Tensor>& column_label, int64_t diagonal, double temperature) {
  const ScoreKernels<T> kernel = kernels<T>();
  const Packed<T> packed = pack<T>(rows, columns, row_label, column_label, diagonal, temperature, false, kernel);
  Tensor lse_all = torch::stable::new_empty(rows, {rows.size(0)});
  Tensor lse_equal = torch::stable::new_empty(rows, {rows.size(0)});
  T* all = lse_all.mutable_data_ptr<T>();
  T* equal = lse_equal.mutable_data_ptr<T>();
  const int64_t block = packed.problem.block;
  torch::stable::parallel_for(0, rounded_up(rows.size(0), block) / block, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      kernel.forward(packed.problem, index, all, equal);
    }
  });
  return {lse_all, lse_equal};
}

// One side's four rows, copied to `target` with padding.
template <typename T>
ScoreSide<T> side_of(const std::optional<Tensor>& side, int64_t count, int64_t padded, T* target) {
  if (!side.has_value()) return {};
  const Tensor values = torch::stable::contiguous(*side);
  for (int64_t k = 0; k < 4; ++k) {
    T* rest = std::copy_n(values.const_data_ptr<T>() + k * count, count, target + k * padded);
    std::fill_n(rest, padded - count, T(0));
  }
  return {target, target + padded, target + 2 * padded, target + 3 * padded};
}

template <typename T>
Tensor backward(const Tensor& rows, const Tensor& columns, const std::optional<Tensor>& row_label,
                const std::optional<Tensor>& column_label, int64_t diagonal, double temperature,
                const std::optional<Tensor>& row_side, const std::optional<Tensor>& column_side) {
  const ScoreKernels<T> kernel = kernels<T>();
  const Packed<T> packed = pack<T>(rows, columns, row_label, column_label, diagonal, temperature, true, kernel);
  const ScoreProblem<T>& problem = packed.problem;
  const int64_t block = problem.block, padded_rows = rounded_up(problem.row_count, block);
  const int64_t padded_columns = rounded_up(problem.column_count, kernel.tile);
  Tensor sides = torch::stable::new_empty(rows, {4 * (padded_rows + padded_columns)});
  T* side_data = sides.mutable_data_ptr<T>();
  const ScoreSide<T> of_rows = side_of<T>(row_side, problem.row_count, padded_rows, side_data);
  const ScoreSide<T> of_columns =
      side_of<T>(column_side, problem.column_count, padded_columns, side_data + 4 * padded_rows);
  Tensor scratch = torch::stable::new_empty(rows, {padded_rows * problem.width});
  Tensor gradient = torch::stable::new_empty(rows, {problem.row_count, problem.depth});
  T* scratch_data = scratch.mutable_data_ptr<T>();
  T* gradient_data = gradient.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, padded_rows / block, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index * block;
      T* result = scratch_data + first * problem.width;
      kernel.backward(problem, index, of_rows, of_columns, result);
      for (int64_t row = 0; row < std::min(block, problem.row_count - first); ++row) {
        std::copy_n(result + row * problem.width, problem.depth, gradient_data + (first + row) * problem.depth);
      }
    }
  });
  return gradient;
}

std::tuple<Tensor, Tensor> score_lse_fwd_cpu(const Tensor& rows, const Tensor& columns, std::optional<Tensor> row_label,
                                             std::optional<Tensor> column_label, int64_t diagonal, double temperature) {
  check_scores("score_lse_fwd", rows, columns, row_label, column_label, temperature);
  return rows.scalar_type() == ScalarType::Float
             ? forward<float>(rows, columns, row_label, column_label, diagonal, temperature)
             : forward<double>(rows, columns, row_label, column_label, diagonal, temperature);
}

void check_side(const char* name, const std::optional<Tensor>& side, const Tensor& of) {
  if (!side.has_value()) return;
  STD_TORCH_CHECK(
      side->dim() == 2 && side->size(0) == 4 && side->size(1) == of.size(0) && side->scalar_type() == of.scalar_type(),
      "score_lse_bwd: ", name, " must be (4, ", of.size(0), ") in the dtype of the rows");
}

Tensor score_lse_bwd_cpu(const Tensor& rows, const Tensor& columns, std::optional<Tensor> row_label,
                         std::optional<Tensor> column_label, int64_t diagonal, double temperature,
                         std::optional<Tensor> row_side, std::optional<Tensor> column_side) {
  check_scores("score_lse_bwd", rows, columns, row_label, column_label, temperature);
  check_side("row_side", row_side, rows);
  check_side("column_side", column_side, columns);
  return rows.scalar_type() == ScalarType::Float
             ? backward<float>(rows, columns, row_label, column_label, diagonal, temperature, row_side, column_side)
             : backward<double>(rows, columns, row_label, column_label, diagonal, temperature, row_side, column_side);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("score_lse_fwd", TORCH_BOX(&sslfast::score_lse_fwd_cpu));
  m.impl("score_lse_bwd", TORCH_BOX(&sslfast::score_lse_bwd_cpu));
}
