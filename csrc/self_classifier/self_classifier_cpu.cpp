// The Self-Classifier loss on the CPU: splits the rows into chunks for the kernels of self_classifier_rows.cpp, and
// joins the chunks' sums in one order, so that the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "self_classifier_rows.h"
#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "sslfast/rounding.h"

namespace sslfast {
namespace {

template <typename T>
SelfClassifierKernels<T> kernels() {
  return SSLFAST_CHOOSE(self_classifier_kernels<T>);
}

constexpr double log2_e = 1.4426950408889634;

struct Options {
  double row_temperature, column_temperature;
  int64_t global_views = 1;
  double eps = 1;
  int64_t batch = 1;  // rows of all ranks together
};

int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Half || tensor.scalar_type() == ScalarType::BFloat16;
}

void check_views(const char* op, const std::vector<Tensor>& views, const Options& options) {
  STD_TORCH_CHECK(views.size() >= 2, op, ": at least two views are needed, got ", views.size());
  const Tensor& model = views[0];
  STD_TORCH_CHECK(model.dim() == 2 && model.size(0) > 0 && model.size(1) > 0, op, ": views must be (B, K), not empty");
  STD_TORCH_CHECK(
      model.scalar_type() == ScalarType::Float || model.scalar_type() == ScalarType::Double || is_half(model), op,
      ": views must be float32, float64, float16 or bfloat16");
  for (const Tensor& view : views) check_like(op, "every view", view, model, 2);
  STD_TORCH_CHECK(options.row_temperature > 0 && options.column_temperature > 0, op, ": temperatures must be > 0, got ",
                  options.row_temperature, " and ", options.column_temperature);
  STD_TORCH_CHECK(options.global_views >= 1, op, ": global_views must be >= 1, got ", options.global_views);
  STD_TORCH_CHECK(options.eps >= 1e-30, op, ": eps must be >= 1e-30, got ", options.eps);
  STD_TORCH_CHECK(options.batch >= 1, op, ": batch must be >= 1, got ", options.batch);
}

template <typename T>
constexpr ScalarType type_of = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double;

template <typename T>
void check_sums(const char* op, const char* name, const Tensor& tensor, int64_t first, int64_t views, int64_t last) {
  STD_TORCH_CHECK(tensor.scalar_type() == type_of<T>, op, ": ", name, " must have the dtype that is computed in");
  STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == first && tensor.size(1) == views && tensor.size(2) == last, op,
                  ": ", name, " must be (", first, ", ", views, ", ", last, ")");
}

// The views as the kernels read them: rows of any distance, but classes next to each other.
template <typename T>
struct Logits {
  std::vector<Tensor> storage;
  std::vector<const T*> pointers;
  std::vector<int64_t> strides;

  explicit Logits(const std::vector<Tensor>& views) {
    for (const Tensor& view : views) {
      Tensor one = is_half(view) ? torch::stable::to(view, ScalarType::Float) : view;
      if (one.size(1) > 1 && one.stride(1) != 1) one = torch::stable::contiguous(one);
      pointers.push_back(one.const_data_ptr<T>());
      strides.push_back(one.stride(0));
      storage.push_back(one);
    }
  }
};

// How the rows are split: into chunks with partial sums of their own, and those over the threads.
struct Plan {
  int64_t chunk, chunks, most_workers;

  explicit Plan(int64_t rows, int64_t row_numbers) {
    // Few enough that the partial sums stay small beside the views, enough for the threads of a large machine.
    chunk = std::max<int64_t>(32, rounded_up((rows + 63) / 64, 8));
    chunks = (rows + chunk - 1) / chunk;
    // Small problems stay on one thread: waking the others costs more. A pass takes about 5 us for this many numbers.
    const int64_t worth = std::max<int64_t>(1, rows * row_numbers / 6144);
    most_workers = std::min<int64_t>(torch::stable::get_num_threads(), worth);
  }

  // body(worker, first task, last task)
  template <typename Body>
  void run(int64_t tasks, const Body& body) const {
    const int64_t workers = std::min(most_workers, tasks);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t w = begin; w < end; ++w) body(w, w * tasks / workers, (w + 1) * tasks / workers);
    });
  }
};

// Working memory of a call.
template <typename T>
struct Memory {
  Tensor storage;
  T* next;

  Memory(const Tensor& model, int64_t numbers)
      : storage(torch::stable::new_empty(model, {numbers}, type_of<T>)), next(storage.mutable_data_ptr<T>()) {}
  T* take(int64_t numbers) { return std::exchange(next, next + numbers); }
};

// One call: the views, what the kernels read of them, and how the work is split.
template <typename T>
struct Call {
  const Tensor& model;
  Options options;
  SelfClassifierKernels<T> kernel;
  Logits<T> logits;
  Plan plan;
  SelfClassifierProblem<T> p{};

  Call(const std::vector<Tensor>& views, const Options& given)
      : model(views[0]),
        options(given),
        kernel(kernels<T>()),
        logits(views),
        plan(views[0].size(0), static_cast<int64_t>(views.size()) * views[0].size(1)) {
    p.logits = logits.pointers.data();
    p.strides = logits.strides.data();
    p.views = static_cast<int64_t>(views.size());
    p.globals = std::min(p.views, options.global_views);
    p.rows = model.size(0);
    p.classes = model.size(1);
    p.width = rounded_up(p.classes, kernel.lanes);
    p.row_factor = static_cast<T>(log2_e / options.row_temperature);
    p.column_factor = static_cast<T>(log2_e / options.column_temperature);
    p.eps = static_cast<T>(options.eps);
  }

  Tensor empty(int64_t kinds, int64_t last) const {
    return torch::stable::new_empty(model, {kinds, p.views, last}, type_of<T>);
  }
  int64_t per_column() const { return p.views * p.classes; }
  int64_t per_row() const { return p.views * p.rows; }
  int64_t scratch() const { return rounded_up(kernel.forward_scratch(p.views, p.width), 16); }
  double weight() const {
    const int64_t locals = p.views - p.globals;
    return 1.0 / (static_cast<double>(p.views * (p.views - 1) - locals * (locals - 1)) * options.batch);
  }
};

// An array (V, K) into (V, width), each number through `change`; zeros behind it.
template <typename T, typename Change>
const T* padded(Memory<T>& memory, const SelfClassifierProblem<T>& p, const Change& change) {
  T* result = memory.take(p.views * p.width);
  for (int64_t v = 0; v < p.views; ++v) {
    for (int64_t k = 0; k < p.classes; ++k) result[v * p.width + k] = change(v * p.classes + k);
    std::fill(result + v * p.width + p.classes, result + (v + 1) * p.width, T(0));
  }
  return result;
}

// What forward and backward both read of the columns and rows.
template <typename T>
void add_statistics(Call<T>& call, Memory<T>& memory, const T* columns, const T* rows) {
  SelfClassifierProblem<T>& p = call.p;
  const T* sum = columns + call.per_column();
  const T* mass = sum + call.per_column();
  const T factor = static_cast<T>(static_cast<double>(call.options.batch) / p.classes);
  p.column_maximum = padded(memory, p, [=](int64_t k) { return columns[k]; });
  p.column_inverse = padded(memory, p, [=](int64_t k) { return 1 / sum[k]; });
  p.prediction_scale =
      padded(memory, p, [=, eps = p.eps](int64_t k) { return factor / (mass[k] < eps ? eps : mass[k]); });
  p.row_maximum = rows;
  p.row_inverse = rows + call.per_row();
}

// The first pass, into columns (3, V, K) and rows (2, V, B).
template <typename T>
void find_columns(const Call<T>& call, T* columns, T* rows) {
  const SelfClassifierProblem<T>& p = call.p;
  const Plan& plan = call.plan;
  const int64_t scratch = call.kernel.columns_scratch(p.width), size = 3 * p.width;
  Memory<T> memory(call.model, plan.most_workers * (scratch + size) + p.views * plan.chunks * size);
  T* scratch_data = memory.take(plan.most_workers * (scratch + size));
  T* partial = memory.take(p.views * plan.chunks * size);
  T* inverse = rows + call.per_row();
  plan.run(p.views * plan.chunks, [&](int64_t worker, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t view = task / plan.chunks, first = task % plan.chunks * plan.chunk;
      call.kernel.columns(p, view, first, std::min(p.rows, first + plan.chunk),
                          scratch_data + worker * (scratch + size), rows + view * p.rows, inverse + view * p.rows,
                          partial + task * size);
    }
  });
  plan.run(p.views, [&](int64_t worker, int64_t begin, int64_t end) {
    T* joined = scratch_data + worker * (scratch + size) + scratch;
    for (int64_t view = begin; view < end; ++view) {
      call.kernel.join_columns(partial + view * plan.chunks * size, plan.chunks, size, p.width, p.column_factor,
                               joined);
      for (int64_t kind = 0; kind < 3; ++kind) {
        std::copy_n(joined + kind * p.width, p.classes, columns + (kind * p.views + view) * p.classes);
      }
    }
  });
}

// The second pass: the loss, and the last 2 of columns (5, V, K) and 3 of rows (5, V, B).
template <typename T>
Tensor find_terms(Call<T>& call, T* columns, T* rows) {
  SelfClassifierProblem<T>& p = call.p;
  const Plan& plan = call.plan;
  const int64_t scratch = call.scratch(), size = 2 * p.views * p.width;
  Memory<T> memory(call.model, 3 * p.views * p.width + plan.most_workers * scratch + (plan.chunks + 1) * size);
  add_statistics(call, memory, columns, rows);
  T* scratch_data = memory.take(plan.most_workers * scratch);
  T* partial = memory.take(plan.chunks * size);
  T* joined = memory.take(size);
  T* sums = columns + 3 * call.per_column();
  T* target_inverse = rows + 2 * call.per_row();
  T* target_along = target_inverse + call.per_row();
  T* pull = target_along + call.per_row();
  std::vector<double> chunk_loss(plan.chunks);
  plan.run(plan.chunks, [&](int64_t worker, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * plan.chunk;
      chunk_loss[task] =
          call.kernel.forward(p, first, std::min(p.rows, first + plan.chunk), scratch_data + worker * scratch,
                              target_inverse, target_along, pull, partial + task * size);
    }
  });
  plan.run(2 * p.views, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t array = begin; array < end; ++array) {
      call.kernel.join_sums(partial + array * p.width, plan.chunks, size, p.width, joined + array * p.width);
      std::copy_n(joined + array * p.width, p.classes, sums + array * p.classes);
    }
  });
  double total = 0;
  for (const double one : chunk_loss) total += one;
  Tensor loss = torch::stable::new_empty(call.model, {}, type_of<T>);
  *loss.mutable_data_ptr<T>() = static_cast<T>(-total * call.weight());
  return loss;
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> forward(const std::vector<Tensor>& views, const Options& options) {
  Call<T> call(views, options);
  Tensor columns = call.empty(5, call.p.classes), rows = call.empty(5, call.p.rows);
  find_columns(call, columns.mutable_data_ptr<T>(), rows.mutable_data_ptr<T>());
  Tensor loss = find_terms(call, columns.mutable_data_ptr<T>(), rows.mutable_data_ptr<T>());
  return {loss, columns, rows};
}

template <typename T>
std::tuple<Tensor, Tensor> columns_of(const std::vector<Tensor>& views, const Options& options) {
  const Call<T> call(views, options);
  Tensor columns = call.empty(3, call.p.classes), rows = call.empty(2, call.p.rows);
  find_columns(call, columns.mutable_data_ptr<T>(), rows.mutable_data_ptr<T>());
  return {columns, rows};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> terms_of(const std::vector<Tensor>& views, const Tensor& first_columns,
                                            const Tensor& first_rows, const Options& options) {
  Call<T> call(views, options);
  check_sums<T>("self_classifier_terms", "columns", first_columns, 3, call.p.views, call.p.classes);
  check_sums<T>("self_classifier_terms", "rows", first_rows, 2, call.p.views, call.p.rows);
  Tensor columns = call.empty(5, call.p.classes), rows = call.empty(5, call.p.rows);
  std::copy_n(first_columns.const_data_ptr<T>(), 3 * call.per_column(), columns.mutable_data_ptr<T>());
  std::copy_n(first_rows.const_data_ptr<T>(), 2 * call.per_row(), rows.mutable_data_ptr<T>());
  Tensor loss = find_terms(call, columns.mutable_data_ptr<T>(), rows.mutable_data_ptr<T>());
  return {loss, columns, rows};
}

template <typename T>
Tensor backward(const Tensor& grad, const std::vector<Tensor>& views, const Tensor& columns, const Tensor& rows,
                const Options& options) {
  Call<T> call(views, options);
  SelfClassifierProblem<T>& p = call.p;
  check_sums<T>("self_classifier_bwd", "columns", columns, 5, p.views, p.classes);
  check_sums<T>("self_classifier_bwd", "rows", rows, 5, p.views, p.rows);
  STD_TORCH_CHECK(grad.dim() == 0 && grad.scalar_type() == type_of<T>, "self_classifier_bwd: grad must be a scalar of ",
                  "the dtype that is computed in");
  const int64_t scratch = call.scratch();
  Tensor gradient = torch::stable::new_empty(call.model, {p.views, p.rows, p.classes}, type_of<T>);
  Memory<T> memory(call.model, 5 * p.views * p.width + call.plan.most_workers * scratch);
  add_statistics(call, memory, columns.const_data_ptr<T>(), rows.const_data_ptr<T>());
  const T* mass = columns.const_data_ptr<T>() + 2 * call.per_column();
  const T* pull = mass + call.per_column();
  const T* along = pull + call.per_column();
  p.column_along = padded(memory, p, [=](int64_t k) { return along[k]; });
  p.prediction_along =
      padded(memory, p, [=, eps = p.eps](int64_t k) { return mass[k] < eps ? T(0) : pull[k] / mass[k]; });
  p.target_inverse = rows.const_data_ptr<T>() + 2 * call.per_row();
  p.target_along = p.target_inverse + call.per_row();
  p.pull = p.target_along + call.per_row();
  const double weight = call.weight() * static_cast<double>(*grad.const_data_ptr<T>());
  p.target_scale = static_cast<T>(-weight / options.column_temperature);
  p.prediction_gradient = static_cast<T>(-weight / options.row_temperature);
  T* scratch_data = memory.take(call.plan.most_workers * scratch);
  T* gradient_data = gradient.mutable_data_ptr<T>();
  call.plan.run((p.rows + call.kernel.block - 1) / call.kernel.block, [&](int64_t worker, int64_t begin, int64_t end) {
    call.kernel.backward(p, begin * call.kernel.block, std::min(p.rows, end * call.kernel.block),
                         scratch_data + worker * scratch, gradient_data);
  });
  return is_half(call.model) ? torch::stable::to(gradient, call.model.scalar_type()) : gradient;
}

std::tuple<Tensor, Tensor, Tensor> forward_cpu(std::vector<Tensor> views, double row_temperature,
                                               double column_temperature, int64_t global_views, double eps) {
  Options options{row_temperature, column_temperature, global_views, eps};
  check_views("self_classifier_fwd", views, options);
  options.batch = views[0].size(0);
  return views[0].scalar_type() == ScalarType::Double ? forward<double>(views, options)
                                                      : forward<float>(views, options);
}

std::tuple<Tensor, Tensor> columns_cpu(std::vector<Tensor> views, double row_temperature, double column_temperature) {
  const Options options{row_temperature, column_temperature};
  check_views("self_classifier_columns", views, options);
  return views[0].scalar_type() == ScalarType::Double ? columns_of<double>(views, options)
                                                      : columns_of<float>(views, options);
}

std::tuple<Tensor, Tensor, Tensor> terms_cpu(std::vector<Tensor> views, const Tensor& columns, const Tensor& rows,
                                             double row_temperature, double column_temperature, int64_t global_views,
                                             double eps, int64_t batch) {
  const Options options{row_temperature, column_temperature, global_views, eps, batch};
  check_views("self_classifier_terms", views, options);
  const Tensor c = torch::stable::contiguous(columns), r = torch::stable::contiguous(rows);
  return views[0].scalar_type() == ScalarType::Double ? terms_of<double>(views, c, r, options)
                                                      : terms_of<float>(views, c, r, options);
}

Tensor backward_cpu(const Tensor& grad, std::vector<Tensor> views, const Tensor& columns, const Tensor& rows,
                    double row_temperature, double column_temperature, int64_t global_views, double eps,
                    std::optional<int64_t> batch) {
  Options options{row_temperature, column_temperature, global_views, eps, batch.value_or(1)};
  check_views("self_classifier_bwd", views, options);
  if (!batch) options.batch = views[0].size(0);
  const Tensor c = torch::stable::contiguous(columns), r = torch::stable::contiguous(rows);
  return views[0].scalar_type() == ScalarType::Double ? backward<double>(grad, views, c, r, options)
                                                      : backward<float>(grad, views, c, r, options);
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) {
  m.impl("self_classifier_columns", TORCH_BOX(&sslfast::columns_cpu));
  m.impl("self_classifier_terms", TORCH_BOX(&sslfast::terms_cpu));
  m.impl("self_classifier_fwd", TORCH_BOX(&sslfast::forward_cpu));
  m.impl("self_classifier_bwd", TORCH_BOX(&sslfast::backward_cpu));
}
