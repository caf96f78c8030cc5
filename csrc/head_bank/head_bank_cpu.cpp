// The head bank on the CPU: reads the table of heads, brings minibatches into the layout of the products, once for all
// heads, and gives each head to one thread for a run of minibatches, the costliest first. A head's result depends on
// nothing but itself: not on its neighbours, not on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "head_bank.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "sslfast/rounding.h"

namespace sslfast {
namespace {

// Columns of the table of heads; the widths of the layers follow, the classes last, then zeros.
enum Column : int64_t { optimizer, steps_done, dropped, key, depth, first_width };
enum Number : int64_t { momentum, second_decay, epsilon, weight_decay, trust, number_count };

// So many rows of minibatches are laid out at a time: enough for a head to stay in a core's cache for a while.
constexpr int64_t rows_at_a_time = 4096;
constexpr int64_t bytes_at_a_time = int64_t{1} << 26;

bool has_bfloat16() {
#if defined(__x86_64__)
  return cpu_capability() == Capability::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

template <typename T>
HeadKernels<T> kernels_of(bool half) {
#if defined(__x86_64__)
  if constexpr (sizeof(T) == 4) {
    if (half && has_bfloat16()) return avx512_bf16::half_head_kernels();
  }
#endif
  STD_TORCH_CHECK(!half, "head_bank: bfloat16 products need float32 heads and a processor with AVX512-BF16");
  return SSLFAST_CHOOSE(head_kernels<T>);
}

// Memory for one head at a time, handed out from one piece.
template <typename T>
class Arena {
 public:
  T* take(int64_t numbers) {
    T* from = memory_.get() + used_;
    used_ += rounded_up(numbers, 64 / static_cast<int64_t>(sizeof(T)));
    return from;
  }
  void reset() { used_ = 0; }
  void reserve(int64_t numbers) {
    if (numbers <= size_) return;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, rounded_up(numbers * static_cast<int64_t>(sizeof(T)), 64))));
    STD_TORCH_CHECK(memory_ != nullptr, "head_bank: out of memory");
    std::fill(memory_.get(), memory_.get() + numbers, T(0));
    size_ = numbers;
  }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T[], Free> memory_;
  int64_t size_ = 0, used_ = 0;
};

// A row of the table of heads.
struct Plan {
  Optimizer optimizer;
  int64_t steps_done, dropped;
  uint64_t key;
  std::vector<int64_t> widths;  // inputs, hidden layers, classes; rounded up
  int64_t classes;

  bool adam() const { return optimizer == Optimizer::adam || optimizer == Optimizer::adamw; }
  int64_t parameters() const {
    int64_t count = 0;
    for (size_t k = 1; k < widths.size(); ++k) count += (widths[k - 1] + 1) * widths[k];
    return count;
  }
  double cost() const {
    double count = 0;
    for (size_t k = 1; k < widths.size(); ++k) {
      count += static_cast<double>(widths[k - 1]) * static_cast<double>(widths[k]) * (k == 1 ? 2 : 3);
    }
    return count;
  }
};

template <typename T>
int64_t state_size(const Plan& plan) {
  return plan.parameters() * (plan.adam() ? 3 : 2);
}

std::vector<Plan> plans_of(const char* op, const Tensor& heads, int64_t inputs) {
  STD_TORCH_CHECK(heads.dim() == 2 && heads.scalar_type() == ScalarType::Long && heads.size(1) > first_width, op,
                  ": heads must be int64 (heads, columns)");
  const Tensor table = torch::stable::contiguous(heads);
  const int64_t* row = table.const_data_ptr<int64_t>();
  std::vector<Plan> plans;
  for (int64_t index = 0; index < table.size(0); ++index, row += table.size(1)) {
    STD_TORCH_CHECK(row[optimizer] >= 0 && row[optimizer] <= 3, op, ": unknown optimizer ", row[optimizer]);
    STD_TORCH_CHECK(row[dropped] >= 0 && row[dropped] < 65536, op, ": dropped must lie in [0, 65536)");
    STD_TORCH_CHECK(row[depth] >= 1 && first_width + row[depth] <= table.size(1), op, ": a head has ", row[depth],
                    " layers, the table has room for ", table.size(1) - first_width);
    Plan plan{static_cast<Optimizer>(row[optimizer]),
              row[steps_done],
              row[dropped],
              static_cast<uint64_t>(row[key]),
              {rounded_up(inputs, head_columns)},
              0};
    for (int64_t layer = 0; layer < row[depth]; ++layer) {
      plan.classes = row[first_width + layer];
      STD_TORCH_CHECK(plan.classes >= 1, op, ": a layer must have at least one output");
      plan.widths.push_back(rounded_up(plan.classes, head_columns));
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

// The head whose state is given, with memory for a minibatch of `rows` (rounded up) from the arena.
template <typename T>
Head<T> lay_out(const Plan& plan, T* state, int64_t rows, bool half, T* cells, std::vector<HeadLayer<T>>& layers,
                Arena<T>& arena) {
  layers.assign(plan.widths.size() - 1, {});
  const int64_t parameters = plan.parameters();
  T* place = state;
  for (size_t index = 0; index < layers.size(); ++index) {
    HeadLayer<T>& layer = layers[index];
    layer.inputs = plan.widths[index];
    layer.outputs = plan.widths[index + 1];
    const int64_t size = layer.inputs * layer.outputs;
    layer.weight = place;
    layer.first = place + parameters;
    layer.second = plan.adam() ? place + 2 * parameters : layer.first;
    layer.bias = layer.weight + size;
    layer.bias_first = layer.first + size;
    layer.bias_second = layer.second + size;
    place += size + layer.outputs;
    layer.forward_weight = half ? cells : layer.weight;
    layer.backward_weight = half ? cells + size / 2 : layer.weight;
    cells += half ? size : 0;
    layer.activation = arena.take(rows * layer.outputs);
    layer.gradient = arena.take(rows * layer.outputs);
    layer.hidden = half ? arena.take(rows * layer.outputs / 2) : layer.activation;
    layer.hidden_columns = arena.take(rows * layer.outputs / (half ? 2 : 1));
    layer.error = arena.take(rows * layer.outputs / (half ? 2 : 1));
    layer.error_columns = half ? arena.take(rows * layer.outputs / 2) : layer.gradient;
    layer.bias_gradient = arena.take(layer.outputs);
  }
  return {layers.data(), static_cast<int64_t>(layers.size()), plan.classes, plan.dropped, plan.key, {}};
}

template <typename T>
int64_t memory_of(const Plan& plan, int64_t rows) {
  int64_t count = 0;
  for (size_t k = 1; k < plan.widths.size(); ++k) count += (4 * rows + 1) * plan.widths[k] + 7 * 64;
  return count;
}

// Minibatches `first` to `last` - 1 of the rows that `order` names, in cells.
template <typename T>
struct Minibatches {
  Tensor storage;
  std::vector<const T*> rows;
  int64_t batch, stride, inputs, width, total, per_batch;
  const T* features;
  const int64_t* labels;
  int64_t label_count;
  const int64_t* order;  // none: the rows as they come
  std::vector<int64_t> ordered_labels;

  Minibatches(const Tensor& like, const Tensor& labels_, const int64_t* order_, int64_t total_, int64_t batch_,
              int64_t limit, int64_t cell)
      : batch(batch_),
        stride(rounded_up(batch_, head_columns)),
        inputs(rounded_up(like.size(1), head_columns)),
        width(like.size(1)),
        total(total_),
        features(like.const_data_ptr<T>()),
        labels(labels_.const_data_ptr<int64_t>()),
        label_count(labels_.size(0)),
        order(order_) {
    const int64_t bytes = 2 * stride * inputs * static_cast<int64_t>(sizeof(T)) / cell;
    // At least eight batches, so that a head stays in its core, unless they are huge.
    const int64_t least = std::clamp<int64_t>(4 * bytes_at_a_time / bytes, 1, 8);
    per_batch = std::min(limit, std::max(least, std::min(rows_at_a_time / batch, bytes_at_a_time / bytes)));
    storage = torch::stable::new_empty(like, {per_batch * 2 * stride * inputs / cell});
    ordered_labels.resize(per_batch * batch);
  }

  int64_t count() const { return divided_up(total, batch); }
  int64_t rows_of(int64_t index) const { return std::min(batch, total - index * batch); }
  int64_t row(int64_t place) const { return order == nullptr ? place : order[place]; }

  void fill(const HeadKernels<T>& kernel, int64_t first, int64_t last) {
    const int64_t cell = kernel.half ? 2 : 1, size = stride * inputs / cell;
    T* memory = storage.template mutable_data_ptr<T>();
    torch::stable::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      std::vector<const T*> from(batch);
      std::vector<T> scratch(kernel.half ? stride * (inputs + head_columns) : 0);
      for (int64_t index = begin; index < end; ++index) {
        const int64_t known = rows_of(index);
        for (int64_t k = 0; k < known; ++k) {
          const int64_t place = row(index * batch + k);
          from[k] = features + place * width;
          ordered_labels[(index - first) * batch + k] = labels[place % label_count];
        }
        T* cells = memory + (index - first) * 2 * size;
        kernel.prepare(from.data(), known, width, inputs, rounded_up(known, head_columns), stride, scratch.data(),
                       cells, cells + size);
      }
    });
  }

  Minibatch<T> at(int64_t index, int64_t first, int64_t cell) const {
    const int64_t size = stride * inputs / cell;
    const T* cells = storage.template const_data_ptr<T>() + (index - first) * 2 * size;
    return {cells,
            cells + size,
            ordered_labels.data() + (index - first) * batch,
            rows_of(index),
            rounded_up(rows_of(index), head_columns),
            stride};
  }
};

template <typename T>
void check_rows(const char* op, const Tensor& features, const Tensor& labels, const std::vector<Plan>& plans,
                const std::vector<Tensor>& states) {
  STD_TORCH_CHECK(labels.dim() == 1 && labels.scalar_type() == ScalarType::Long && labels.size(0) > 0 &&
                      features.size(0) % labels.size(0) == 0,
                  op, ": labels must be int64, one for each row of a view");
  STD_TORCH_CHECK(states.size() == plans.size(), op, ": there must be one state per head, got ", states.size(), " for ",
                  plans.size());
  for (size_t index = 0; index < plans.size(); ++index) {
    const Tensor& state = states[index];
    STD_TORCH_CHECK(state.dim() == 1 && state.is_contiguous() && state.scalar_type() == features.scalar_type() &&
                        state.size(0) == state_size<T>(plans[index]),
                    op, ": state ", index, " must have ", state_size<T>(plans[index]),
                    " numbers of the features' dtype");
    const int64_t* label = labels.const_data_ptr<int64_t>();
    if (index > 0 && plans[index].classes == plans[index - 1].classes) continue;
    for (int64_t row = 0; row < labels.size(0); ++row) {
      STD_TORCH_CHECK(label[row] >= 0 && label[row] < plans[index].classes, op, ": label ", label[row], " of row ", row,
                      " is not one of ", plans[index].classes, " classes");
    }
  }
}

// Heads, costliest first, to whichever thread is free: run(index, arena).
template <typename T, typename Run>
void each_head(const std::vector<Plan>& plans, int64_t rows, const Run& run) {
  std::vector<int64_t> order(plans.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return plans[a].cost() > plans[b].cost(); });
  int64_t memory = 0;
  for (const Plan& plan : plans) memory = std::max(memory, memory_of<T>(plan, rows));
  std::atomic<size_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), static_cast<int64_t>(plans.size()));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    Arena<T> arena;
    arena.reserve(memory);
    for (size_t at = next++; at < order.size(); at = next++) {
      arena.reset();
      run(order[at], arena);
    }
  });
}

template <typename T>
Tensor train(const Tensor& features, const Tensor& labels, const Tensor& order, const Tensor& heads,
             const Tensor& numbers, const Tensor& rates, std::vector<Tensor>& states, int64_t batch, bool half) {
  const HeadKernels<T> kernel = kernels_of<T>(half);
  const std::vector<Plan> plans = plans_of("head_bank_train", heads, features.size(1));
  check_rows<T>("head_bank_train", features, labels, plans, states);
  const int64_t cell = half ? 2 : 1, count = static_cast<int64_t>(plans.size());
  const int64_t* rows = order.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < order.size(0); ++k) {
    STD_TORCH_CHECK(rows[k] >= 0 && rows[k] < features.size(0), "head_bank_train: row ", rows[k], " is not one of ",
                    features.size(0));
  }
  const int64_t steps = divided_up(order.size(0), batch);
  STD_TORCH_CHECK(numbers.dim() == 2 && numbers.size(0) == count && numbers.size(1) == number_count &&
                      numbers.scalar_type() == ScalarType::Double,
                  "head_bank_train: numbers must be float64 (heads, ", static_cast<int64_t>(number_count), ")");
  STD_TORCH_CHECK(
      rates.dim() == 2 && rates.size(0) == count && rates.size(1) == steps && rates.scalar_type() == ScalarType::Double,
      "head_bank_train: rates must be float64 (heads, ", steps, ")");
  Tensor losses = torch::stable::new_empty(rates, {count, steps});
  double* loss = losses.mutable_data_ptr<double>();
  const double* number = numbers.const_data_ptr<double>();
  const double* rate = rates.const_data_ptr<double>();
  std::vector<Tensor> cells;
  for (const Plan& plan : plans) cells.push_back(torch::stable::new_empty(features, {half ? plan.parameters() : 0}));
  Minibatches<T> batches(features, labels, rows, order.size(0), batch, steps, cell);
  const int64_t padded = batches.stride;
  for (int64_t first = 0; first < steps; first += batches.per_batch) {
    const int64_t last = std::min(steps, first + batches.per_batch);
    batches.fill(kernel, first, last);
    each_head<T>(plans, padded, [&](int64_t index, Arena<T>& arena) {
      const Plan& plan = plans[index];
      std::vector<HeadLayer<T>> layers;
      Head<T> head = lay_out<T>(plan, states[index].template mutable_data_ptr<T>(), padded, half,
                                cells[index].template mutable_data_ptr<T>(), layers, arena);
      if (first == 0) {
        for (size_t layer = 0; layer < layers.size(); ++layer) kernel.refresh(layers[layer], layer > 0);
      }
      const double* own = number + index * number_count;
      HeadUpdate<T>& update = head.update;
      update.optimizer = plan.optimizer;
      update.momentum = static_cast<T>(own[momentum]);
      update.second_decay = static_cast<T>(own[second_decay]);
      update.rest_of_momentum = static_cast<T>(1 - own[momentum]);
      update.rest_of_second = static_cast<T>(1 - own[second_decay]);
      update.epsilon = static_cast<T>(own[epsilon]);
      update.weight_decay = static_cast<T>(own[weight_decay]);
      update.trust = static_cast<T>(own[trust]);
      for (int64_t step = first; step < last; ++step) {
        const int64_t done = plan.steps_done + step;
        const double now = rate[index * steps + step], after = static_cast<double>(done + 1);
        update.rate = static_cast<T>(now);
        update.adam_rate = static_cast<T>(now / (1 - std::pow(own[momentum], after)));
        update.adam_root = static_cast<T>(1 / std::sqrt(1 - std::pow(own[second_decay], after)));
        update.adamw_shrink = static_cast<T>(1 - now * own[weight_decay]);
        loss[index * steps + step] = kernel.step(head, batches.at(step, first, cell), static_cast<uint64_t>(done));
      }
    });
  }
  return losses;
}

// Of each head the rows that it gets right (NaN where a logit is not finite) and the sum of their cross-entropies.
template <typename T>
Tensor evaluate(const Tensor& features, const Tensor& labels, const Tensor& heads, std::vector<Tensor>& states,
                bool half) {
  constexpr int64_t batch = 64;
  const HeadKernels<T> kernel = kernels_of<T>(half);
  const std::vector<Plan> plans = plans_of("head_bank_evaluate", heads, features.size(1));
  check_rows<T>("head_bank_evaluate", features, labels, plans, states);
  const int64_t cell = half ? 2 : 1, count = static_cast<int64_t>(plans.size());
  Tensor result = torch::stable::new_empty(features, {count, 2}, ScalarType::Double);
  double* found = result.mutable_data_ptr<double>();
  std::fill(found, found + 2 * count, 0.0);
  std::vector<Tensor> cells;
  for (const Plan& plan : plans) cells.push_back(torch::stable::new_empty(features, {half ? plan.parameters() : 0}));
  Minibatches<T> batches(features, labels, nullptr, features.size(0), batch, divided_up(features.size(0), batch), cell);
  for (int64_t first = 0; first < batches.count(); first += batches.per_batch) {
    const int64_t last = std::min(batches.count(), first + batches.per_batch);
    batches.fill(kernel, first, last);
    each_head<T>(plans, batches.stride, [&](int64_t index, Arena<T>& arena) {
      std::vector<HeadLayer<T>> layers;
      const Head<T> head = lay_out<T>(plans[index], states[index].template mutable_data_ptr<T>(), batches.stride, half,
                                      cells[index].template mutable_data_ptr<T>(), layers, arena);
      if (first == 0) {
        for (const HeadLayer<T>& layer : layers) kernel.refresh(layer, false);
      }
      for (int64_t step = first; step < last; ++step) {
        const Minibatch<T> rows = batches.at(step, first, cell);
        kernel.forward(head, rows);
        for (int64_t row = 0; row < rows.count; ++row) {
          const T* logits = layers.back().activation + row * layers.back().outputs;
          const T* best = std::max_element(logits, logits + head.classes);
          double sum = 0, all = 0;
          for (int64_t k = 0; k < head.classes; ++k) {
            sum += std::exp(static_cast<double>(logits[k] - *best));
            all += logits[k];
          }
          found[2 * index] += std::isfinite(all) ? static_cast<double>(best - logits == rows.labels[row]) : NAN;
          found[2 * index + 1] += std::log(sum) + static_cast<double>(*best - logits[rows.labels[row]]);
        }
      }
    });
  }
  return result;
}

void check_features(const char* op, const Tensor& features) {
  check_matrix(op, "features", features);
  STD_TORCH_CHECK(features.size(0) > 0 && features.size(1) > 0, op, ": features must not be empty");
}

Tensor head_bank_train_cpu(const Tensor& features, const Tensor& labels, const Tensor& order, const Tensor& heads,
                           const Tensor& numbers, const Tensor& rates, std::vector<Tensor> states, int64_t batch,
                           bool half) {
  check_features("head_bank_train", features);
  STD_TORCH_CHECK(order.dim() == 1 && order.scalar_type() == ScalarType::Long && order.size(0) > 0,
                  "head_bank_train: order must be int64 and not empty");
  STD_TORCH_CHECK(batch >= 1, "head_bank_train: batch must be at least 1, got ", batch);
  batch = std::min(batch, order.size(0));
  const Tensor x = torch::stable::contiguous(features), y = torch::stable::contiguous(labels);
  const Tensor rows = torch::stable::contiguous(order), of_heads = torch::stable::contiguous(numbers);
  const Tensor schedule = torch::stable::contiguous(rates);
  return features.scalar_type() == ScalarType::Float
             ? train<float>(x, y, rows, heads, of_heads, schedule, states, batch, half)
             : train<double>(x, y, rows, heads, of_heads, schedule, states, batch, half);
}

Tensor head_bank_evaluate_cpu(const Tensor& features, const Tensor& labels, const Tensor& heads,
                              std::vector<Tensor> states, bool half) {
  check_features("head_bank_evaluate", features);
  const Tensor x = torch::stable::contiguous(features), y = torch::stable::contiguous(labels);
  return features.scalar_type() == ScalarType::Float ? evaluate<float>(x, y, heads, states, half)
                                                     : evaluate<double>(x, y, heads, states, half);
}

bool cpu_has_bfloat16() { return has_bfloat16(); }

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("head_bank_train", TORCH_BOX(&sslfast::head_bank_train_cpu));
  m.impl("head_bank_evaluate", TORCH_BOX(&sslfast::head_bank_evaluate_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(sslfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_has_bfloat16", TORCH_BOX(&sslfast::cpu_has_bfloat16));
}
