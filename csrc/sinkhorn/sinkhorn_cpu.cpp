// Sinkhorn-Knopp on the CPU: one number per prototype is iterated on, never the assignments. Each pass hands blocks of
// rows to the kernels of sinkhorn_rows.cpp and adds the blocks' column sums in one order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>
#include <optional>

#include "sinkhorn.h"
#include "sslfast/check.h"

namespace sslfast {
namespace {

constexpr int64_t columns_per_step = 512;

template <typename T>
struct Block {
  ScoreRows<T> scores;
  int64_t set;
};

template <typename T>
class Passes {
 public:
  Passes(const std::vector<ScoreParts<T>>& sets, const Tensor& like) : kernels_(sinkhorn_kernels<T>()) {
    int64_t numbers = 0;
    for (const ScoreParts<T>& parts : sets) {
      starts_.push_back(static_cast<int64_t>(blocks_.size()));
      for (const ScoreRows<T>& part : parts) {
        columns_ = part.columns;
        const int64_t step = rows_per_block(part.rows);
        for (int64_t first = 0; first < part.rows; first += step) {
          const int64_t rows = std::min(step, part.rows - first);
          blocks_.push_back({{part.scores + first * part.columns, rows, part.columns, part.scale},
                             static_cast<int64_t>(starts_.size()) - 1});
          numbers = std::max(numbers, rows * part.columns);
        }
      }
    }
    starts_.push_back(static_cast<int64_t>(blocks_.size()));
    width_ = padded(columns_);
    grain_ = blocks_per_task(numbers);
    storage_ = torch::stable::new_empty(like, {2 * starts_.back() + set_count(), width_});
    sums_ = storage_.mutable_data_ptr<T>();
    highest_ = sums_ + starts_.back() * width_;
    shifts_ = highest_ + starts_.back() * width_;
    shifted_.assign(starts_.back(), 1);
  }

  // potentials = log2 of the column sums of 2^t.
  void first(T* potentials) {
    // The first rows guess how large a column's exponents get: right for cosines, put right below for others.
    each_column(1, [&](int64_t set, int64_t begin, int64_t end) {
      kernels_.guess_shift(blocks_[starts_[set]].scores, begin, end, shifts_ + set * width_);
    });
    each_block([&](int64_t index) {
      const Block<T>& block = blocks_[index];
      T* sums = sums_ + index * width_;
      shifted_[index] = kernels_.shifted_column_sums(block.scores, shifts_ + block.set * width_, sums);
      if (!shifted_[index]) kernels_.column_sums(block.scores, highest_ + index * width_, sums);
    });
    each_column(blocks_.size(), [&](int64_t set, int64_t begin, int64_t end) {
      const int64_t start = starts_[set], count = starts_[set + 1] - start;
      const T* shift = shifts_ + set * width_;
      T* potential = potentials + set * width_;
      if (std::all_of(shifted_.begin() + start, shifted_.begin() + start + count, [](char one) { return one; })) {
        std::copy(shift + begin, shift + end, potential + begin);
        kernels_.add_logarithm(sums_ + start * width_, count, width_, begin, end, potential);
        return;
      }
      for (int64_t index = start; index < start + count; ++index) {
        if (shifted_[index])
          std::copy_n(shift + begin, (end - begin + 15) / 16 * 16, highest_ + index * width_ + begin);
      }
      kernels_.add_scaled(highest_ + start * width_, sums_ + start * width_, count, width_, begin, end, potential);
    });
  }

  // potentials += log2 of the column sums of the soft-max of t - potentials.
  void next(T* potentials) {
    probability_blocks(potentials);
    each_column(blocks_.size(), [&](int64_t set, int64_t begin, int64_t end) {
      const int64_t start = starts_[set];
      kernels_.add_logarithm(sums_ + start * width_, starts_[set + 1] - start, width_, begin, end,
                             potentials + set * width_);
    });
  }

  // What `next` takes the logarithm of, for one set.
  void probability_sums(const T* potential, T* result) {
    probability_blocks(potential);
    each_column(blocks_.size(), [&](int64_t, int64_t begin, int64_t end) {
      kernels_.add(sums_, starts_.back(), width_, begin, end, result);
    });
  }

 private:
  template <typename Step>
  void each_block(const Step& step) {
    torch::stable::parallel_for(0, static_cast<int64_t>(blocks_.size()), grain_, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) step(index);
    });
  }

  // In steps of whole vectors; `rows` numbers are read per column.
  template <typename Step>
  void each_column(int64_t rows, const Step& step) {
    const int64_t steps = (columns_ + columns_per_step - 1) / columns_per_step;
    torch::stable::parallel_for(0, set_count() * steps, blocks_per_task(columns_per_step * rows),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t index = begin; index < end; ++index) {
                                    const int64_t column = index % steps * columns_per_step;
                                    step(index / steps, column, std::min(columns_, column + columns_per_step));
                                  }
                                });
  }

  void probability_blocks(const T* potentials) {
    each_block([&](int64_t index) {
      const Block<T>& block = blocks_[index];
      const AlignedRow<T> row(width_);
      kernels_.probability_sums(block.scores, potentials + block.set * width_, row.data(), sums_ + index * width_);
    });
  }

  int64_t set_count() const { return static_cast<int64_t>(starts_.size()) - 1; }

  SinkhornKernels<T> kernels_;
  std::vector<Block<T>> blocks_;
  std::vector<int64_t> starts_;  // of every set's blocks, and their number
  int64_t columns_ = 0;
  int64_t width_ = 0;
  int64_t grain_ = 1;
  Tensor storage_;
  T* sums_ = nullptr;     // (blocks, width)
  T* highest_ = nullptr;  // (blocks, width), written where shifted_ is 0
  T* shifts_ = nullptr;   // (sets, width)
  std::vector<char> shifted_;
};

template <typename T>
T scale_of(double epsilon) {
  return static_cast<T>(binary_logarithm_of_e / epsilon);
}

// log2 of (the sum of all 2^t) / rows: what an assignment is divided by where there is no iteration.
template <typename T>
T level_of(const T* column_potential, int64_t columns, int64_t rows) {
  double most = std::numeric_limits<T>::lowest();
  for (int64_t k = 0; k < columns; ++k) most = std::max<double>(most, column_potential[k]);
  double total = 0;
  for (int64_t k = 0; k < columns; ++k) total += std::exp2(column_potential[k] - most);
  return static_cast<T>(most + std::log2(total) - std::log2(static_cast<double>(rows)));
}

}  // namespace

template <typename T>
void sinkhorn_potentials(const std::vector<ScoreParts<T>>& sets, int64_t iterations, T* potentials,
                         const Tensor& like) {
  Passes<T> passes(sets, like);
  passes.first(potentials);
  for (int64_t iteration = 1; iteration < iterations; ++iteration) passes.next(potentials);
  if (iterations > 0) return;
  for (size_t set = 0; set < sets.size(); ++set) {
    int64_t rows = 0, columns = 0;
    for (const ScoreRows<T>& part : sets[set]) rows += part.rows, columns = part.columns;
    T* potential = potentials + static_cast<int64_t>(set) * padded(columns);
    std::fill_n(potential, columns, level_of(potential, columns, rows));
  }
}

template void sinkhorn_potentials<float>(const std::vector<ScoreParts<float>>&, int64_t, float*, const Tensor&);
template void sinkhorn_potentials<double>(const std::vector<ScoreParts<double>>&, int64_t, double*, const Tensor&);

namespace {

template <typename T>
void assign(const ScoreRows<T>& scores, const T* potential, bool normalised, T* result) {
  const SinkhornKernels<T> kernels = sinkhorn_kernels<T>();
  const int64_t step = rows_per_block(scores.rows);
  const bool streamed = scores.rows * scores.columns * static_cast<int64_t>(sizeof(T)) >= bytes_to_stream;
  torch::stable::parallel_for(
      0, (scores.rows + step - 1) / step, blocks_per_task(step * scores.columns), [&](int64_t begin, int64_t end) {
        const AlignedRow<T> row(padded(scores.columns));
        for (int64_t index = begin; index < end; ++index) {
          const int64_t first = index * step;
          const ScoreRows<T> block{scores.scores + first * scores.columns, std::min(step, scores.rows - first),
                                   scores.columns, scores.scale};
          T* target = result + first * scores.columns;
          if (normalised) {
            kernels.probabilities(block, potential, row.data(), target, streamed);
          } else {
            kernels.exponentials(block, potential, target);
          }
        }
      });
}

// How many of the rows count.
int64_t valid_rows_of(const char* op, const Tensor& scores, const std::optional<Tensor>& valid_rows) {
  if (!valid_rows.has_value()) return scores.size(0);
  STD_TORCH_CHECK(valid_rows->scalar_type() == ScalarType::Long && valid_rows->dim() == 0, op,
                  ": valid_rows must be an int64 tensor without dimensions");
  return std::clamp<int64_t>(*valid_rows->const_data_ptr<int64_t>(), 0, scores.size(0));
}

void check_scores(const char* op, const Tensor& scores, double epsilon) {
  check_matrix(op, "scores", scores);
  STD_TORCH_CHECK(scores.size(1) > 0, op, ": scores must have columns");
  STD_TORCH_CHECK(epsilon > 0, op, ": epsilon must be > 0, got ", epsilon);
}

void check_potential(const char* op, const Tensor& potential, const Tensor& scores) {
  STD_TORCH_CHECK(
      potential.scalar_type() == scores.scalar_type() && potential.dim() == 1 && potential.size(0) == scores.size(1),
      op, ": potential must be (K,) of the scores' dtype");
}

// The potential in base 2, with room for whole vectors.
template <typename T>
Tensor in_base_2(const Tensor& potential, const Tensor& like) {
  const int64_t columns = potential.size(0);
  Tensor result = torch::stable::new_empty(like, {padded(columns)});
  const Tensor source = torch::stable::contiguous(potential);
  T* target = result.mutable_data_ptr<T>();
  std::fill_n(target, padded(columns), T(0));
  const T* from = source.const_data_ptr<T>();
  for (int64_t k = 0; k < columns; ++k) target[k] = static_cast<T>(from[k] * binary_logarithm_of_e);
  return result;
}

template <typename T>
Tensor forward(const Tensor& scores, int64_t valid, int64_t iterations, double epsilon) {
  const int64_t columns = scores.size(1);
  Tensor result = torch::stable::new_empty(scores, {scores.size(0), columns});
  T* target = result.mutable_data_ptr<T>();
  std::fill(target + valid * columns, target + scores.size(0) * columns, T(0));
  if (valid == 0) return result;
  const ScoreRows<T> rows{scores.const_data_ptr<T>(), valid, columns, scale_of<T>(epsilon)};
  const AlignedRow<T> potential(padded(columns));
  std::fill_n(potential.data(), padded(columns), T(0));
  sinkhorn_potentials<T>({{rows}}, iterations, potential.data(), scores);
  assign(rows, potential.data(), iterations > 0, target);
  return result;
}

template <typename T>
Tensor log_sums(const Tensor& scores, int64_t valid, double epsilon) {
  const int64_t columns = scores.size(1);
  Tensor result = torch::stable::new_empty(scores, {columns});
  T* target = result.mutable_data_ptr<T>();
  std::fill_n(target, columns, -std::numeric_limits<T>::infinity());
  if (valid == 0) return result;
  const AlignedRow<T> potential(padded(columns));
  sinkhorn_potentials<T>({{{scores.const_data_ptr<T>(), valid, columns, scale_of<T>(epsilon)}}}, 1, potential.data(),
                         scores);
  for (int64_t k = 0; k < columns; ++k) target[k] = static_cast<T>(potential.data()[k] / binary_logarithm_of_e);
  return result;
}

template <typename T>
Tensor probability_sums(const Tensor& scores, const Tensor& potential, int64_t valid, double epsilon) {
  const int64_t columns = scores.size(1);
  Tensor result = torch::stable::new_empty(scores, {columns});
  T* target = result.mutable_data_ptr<T>();
  std::fill_n(target, columns, T(0));
  if (valid == 0) return result;
  const Tensor binary = in_base_2<T>(potential, scores);
  const std::vector<ScoreParts<T>> sets{{{scores.const_data_ptr<T>(), valid, columns, scale_of<T>(epsilon)}}};
  Passes<T>(sets, scores).probability_sums(binary.const_data_ptr<T>(), target);
  return result;
}

template <typename T>
Tensor assignments(const Tensor& scores, const Tensor& potential, int64_t valid, double epsilon, bool normalised) {
  const int64_t columns = scores.size(1);
  Tensor result = torch::stable::new_empty(scores, {scores.size(0), columns});
  T* target = result.mutable_data_ptr<T>();
  std::fill(target + valid * columns, target + scores.size(0) * columns, T(0));
  if (valid == 0) return result;
  const Tensor binary = in_base_2<T>(potential, scores);
  assign<T>({scores.const_data_ptr<T>(), valid, columns, scale_of<T>(epsilon)}, binary.const_data_ptr<T>(), normalised,
            target);
  return result;
}

Tensor sinkhorn_fwd_cpu(const Tensor& scores, std::optional<Tensor> valid_rows, int64_t iterations, double epsilon) {
  check_scores("sinkhorn_fwd", scores, epsilon);
  STD_TORCH_CHECK(iterations >= 0, "sinkhorn_fwd: iterations must be >= 0, got ", iterations);
  const int64_t valid = valid_rows_of("sinkhorn_fwd", scores, valid_rows);
  const Tensor rows = torch::stable::contiguous(scores);
  return rows.scalar_type() == ScalarType::Float ? forward<float>(rows, valid, iterations, epsilon)
                                                 : forward<double>(rows, valid, iterations, epsilon);
}

Tensor sinkhorn_log_sums_cpu(const Tensor& scores, std::optional<Tensor> valid_rows, double epsilon) {
  check_scores("sinkhorn_log_sums", scores, epsilon);
  const int64_t valid = valid_rows_of("sinkhorn_log_sums", scores, valid_rows);
  const Tensor rows = torch::stable::contiguous(scores);
  return rows.scalar_type() == ScalarType::Float ? log_sums<float>(rows, valid, epsilon)
                                                 : log_sums<double>(rows, valid, epsilon);
}

Tensor sinkhorn_probability_sums_cpu(const Tensor& scores, const Tensor& potential, std::optional<Tensor> valid_rows,
                                     double epsilon) {
  check_scores("sinkhorn_probability_sums", scores, epsilon);
  check_potential("sinkhorn_probability_sums", potential, scores);
  const int64_t valid = valid_rows_of("sinkhorn_probability_sums", scores, valid_rows);
  const Tensor rows = torch::stable::contiguous(scores);
  return rows.scalar_type() == ScalarType::Float ? probability_sums<float>(rows, potential, valid, epsilon)
                                                 : probability_sums<double>(rows, potential, valid, epsilon);
}

Tensor sinkhorn_assign_cpu(const Tensor& scores, const Tensor& potential, std::optional<Tensor> valid_rows,
                           double epsilon, bool normalised) {
  check_scores("sinkhorn_assign", scores, epsilon);
  check_potential("sinkhorn_assign", potential, scores);
  const int64_t valid = valid_rows_of("sinkhorn_assign", scores, valid_rows);
  const Tensor rows = torch::stable::contiguous(scores);
  return rows.scalar_type() == ScalarType::Float ? assignments<float>(rows, potential, valid, epsilon, normalised)
                                                 : assignments<double>(rows, potential, valid, epsilon, normalised);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("sinkhorn_fwd", TORCH_BOX(&sslfast::sinkhorn_fwd_cpu));
  m.impl("sinkhorn_log_sums", TORCH_BOX(&sslfast::sinkhorn_log_sums_cpu));
  m.impl("sinkhorn_probability_sums", TORCH_BOX(&sslfast::sinkhorn_probability_sums_cpu));
  m.impl("sinkhorn_assign", TORCH_BOX(&sslfast::sinkhorn_assign_cpu));
}
