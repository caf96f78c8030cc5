// Trains one head of a bank, compiled once per capability (with SSLFAST_BF16: products of bfloat16). No std:: templates
// here: an inline function that is compiled with wider vectors must not be the copy that the linker keeps for
// everybody.
#include "head_bank.h"
#include "head_bank_cells.h"
#include "head_bank_products.h"
#include "head_bank_update.h"
#include "sslfast/score_rows.h"

namespace sslfast {
namespace {

constexpr int64_t depth_block = 128;  // of a panel: what a tile reads of it stays in the first-level cache

template <bool half, typename T>
void prepare(const T* const* rows, int64_t count, int64_t width, int64_t inputs, int64_t used, int64_t stride,
             T* scratch, T* cells, T* column_cells) {
  for (int64_t row = 0; row < used; ++row) {
    T* to = (half ? scratch : cells) + row * inputs;
    const int64_t known = row < count ? width : 0;
    if (known > 0) __builtin_memcpy(to, rows[row], known * sizeof(T));
    for (int64_t k = known; k < inputs; ++k) to[k] = 0;
  }
  const T* from = half ? scratch : cells;
  if constexpr (half) {
    // Transposed first, because pairs stand next to each other along the batch.
    for (int64_t first = 0; first < inputs; first += head_columns) {
      T* block = scratch + used * inputs;
      transpose(from + first, inputs, used, head_columns, block, used);
      for (int64_t k = 0; k < head_columns; ++k) {
        cells_along_columns<half>(block + k * used, 1, used, used, column_cells + (first + k) * stride / 2);
      }
    }
    cells_along_columns<half>(from, used, inputs, inputs, cells);
  } else {
    transpose(from, inputs, used, inputs, column_cells, stride);
  }
}

template <bool half, typename T>
void refresh([[maybe_unused]] const HeadLayer<T>& layer, [[maybe_unused]] bool backward) {
  if constexpr (half) {
    for (int64_t panel = 0; panel < layer.outputs; panel += head_panel) {
      const int64_t width = panel_width(layer.outputs, panel), at = panel * layer.inputs;
      cells_along_rows<half>(layer.weight + at, layer.inputs, width, width, layer.forward_weight + at / 2, width);
      if (backward)
        cells_along_columns<half>(layer.weight + at, layer.inputs, width, width, layer.backward_weight + at / 2);
    }
  }
}

// activation (used, outputs) = rows (used, inputs) weight.
template <bool half, typename T>
inline void multiply_rows(const HeadLayer<T>& layer, const T* rows, int64_t used) {
  const int64_t depth = layer.inputs / numbers_per_cell<half>;
  for (int64_t panel = 0; panel < layer.outputs; panel += head_panel) {
    const int64_t width = panel_width(layer.outputs, panel);
    const T* weight = layer.forward_weight + panel * depth;
    for (int64_t k = 0; k < depth; k += depth_block) {
      multiply_cells<half>(rows + k, depth, weight + k * width, width, smaller(depth_block, depth - k), used, width,
                           k > 0, layer.activation + panel, layer.outputs);
    }
  }
}

// gradient of the layer before (inputs, used) = weight error_columns.
template <bool half, typename T>
inline void multiply_error(const HeadLayer<T>& layer, int64_t used, int64_t stride, T* gradient) {
  for (int64_t panel = 0; panel < layer.outputs; panel += head_panel) {
    const int64_t width = panel_width(layer.outputs, panel) / numbers_per_cell<half>;
    const int64_t at = panel / numbers_per_cell<half>;
    multiply_cells<half>(layer.backward_weight + at * layer.inputs, width, layer.error_columns + at * stride, stride,
                         width, layer.inputs, used, panel > 0, gradient, stride);
  }
}

// Sixteen random bits for each of two rows of a unit: a hash of (key, step, layer) and (pair of rows, unit), so that
// nobody else's draws move them.
struct Noise {
  using Bits = Vector<float>::bits;
  uint32_t first, second;

  Noise(uint64_t key, uint64_t step, uint64_t layer) {
    uint64_t state = key + step * 0x9e3779b97f4a7c15u + layer * 0xd1b54a32d192ed03u;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    state ^= state >> 31;
    first = static_cast<uint32_t>(state);
    second = static_cast<uint32_t>(state >> 32);
  }

  Bits operator()(uint32_t counter) const {
    Bits bits;
    for (int lane = 0; lane < Vector<float>::lanes; ++lane) bits[lane] = lane;
    bits = (bits + counter) ^ first;
    bits = (bits ^ (bits >> 16)) * 0x7feb352du;
    bits = (bits ^ (bits >> 15) ^ second) * 0x846ca68bu;
    return bits ^ (bits >> 16);
  }
};

// Of 16 random bits in each lane: `scale` where they are at least `dropped`, else 0.
template <typename T>
inline typename Vector<T>::type kept(const Noise::Bits& random, int part, int shift, uint32_t dropped, T scale) {
  using V = typename Vector<T>::type;
  if constexpr (sizeof(T) == 4) {
    const Noise::Bits bits = (random >> shift) & 0xffffu;
    const V one = splat(scale);
    return bits >= dropped ? one : V{};
  } else {
    V result;
    for (int lane = 0; lane < Vector<T>::lanes; ++lane) {
      result[lane] = ((random[part + lane] >> shift) & 0xffffu) >= dropped ? scale : T(0);
    }
    return result;
  }
}

template <typename V>
inline V rectified(V value) {
  return value < V{} ? V{} : value;  // NaN stays
}

// relu(activation + bias), with dropout, in place.
template <typename T>
inline void activate(const HeadLayer<T>& layer, int64_t used, int64_t dropped, const Noise& noise) {
  constexpr int lanes = Vector<T>::lanes, draws = Vector<float>::lanes;
  const T scale = static_cast<T>(65536.0 / static_cast<double>(65536 - dropped));
  for (int64_t row = 0; row < used; row += 2) {
    T* upper = layer.activation + row * layer.outputs;
    T* lower = upper + layer.outputs;
    for (int64_t unit = 0; unit < layer.outputs; unit += draws) {
      Noise::Bits random{};
      if (dropped > 0) random = noise(static_cast<uint32_t>(row / 2 * layer.outputs + unit));
#pragma GCC unroll 2
      for (int part = 0; part < draws; part += lanes) {
        const auto bias = load(layer.bias + unit + part);
        auto high = rectified(load(upper + unit + part) + bias);
        auto low = rectified(load(lower + unit + part) + bias);
        if (dropped > 0) {
          high *= kept<T>(random, part, 0, static_cast<uint32_t>(dropped), scale);
          low *= kept<T>(random, part, 16, static_cast<uint32_t>(dropped), scale);
        }
        store(upper + unit + part, high);
        store(lower + unit + part, low);
      }
    }
  }
}

// Logits + bias into the gradient of the mean cross-entropy, in place; returns the mean. Rows that are not there get 0.
template <typename T>
double softmax(const HeadLayer<T>& layer, int64_t classes, const Minibatch<T>& batch) {
  using V = typename Vector<T>::type;
  double total = 0;
  const T share = T(1) / static_cast<T>(batch.count);
  for (int64_t row = 0; row < batch.used; ++row) {
    T* logits = layer.activation + row * layer.outputs;
    if (row >= batch.count) {
      for (int64_t k = 0; k < layer.outputs; ++k) logits[k] = 0;
      continue;
    }
    auto best = splat(lowest<T>);
    each_vector<T>(0, classes, [&](int64_t k, int64_t count) {
      const V value = scores_at(logits + k, count) + load(layer.bias + k);
      store_at(logits + k, value, count);
      best = value > best ? value : best;
    });
    const T highest = highest_of<T>(best), own = logits[batch.labels[row]];
    V sum{};
    each_vector<T>(0, classes, [&](int64_t k, int64_t count) {
      const V value = exponential(scores_at(logits + k, count) - highest);
      store_at(logits + k, value, count);
      sum += value;
    });
    const T all = total_of<T>(sum), factor = share / all;
    each_vector<T>(0, classes, [&](int64_t k, int64_t count) {
      store_at(logits + k, scores_at(logits + k, count) * factor, count);
    });
    for (int64_t k = classes; k < layer.outputs; ++k) logits[k] = 0;
    logits[batch.labels[row]] -= share;
    total += __builtin_log(static_cast<double>(all)) + static_cast<double>(highest - own);
  }
  return total / static_cast<double>(batch.count);
}

// layer.gradient, where the layer's output was positive times dropout's scale, else 0.
template <bool half, typename T>
inline void mask_gradient(const HeadLayer<T>& layer, int64_t dropped, int64_t used, int64_t stride) {
  using V = typename Vector<T>::type;
  const V scale = splat(static_cast<T>(65536.0 / static_cast<double>(65536 - dropped)));
  for (int64_t unit = 0; unit < layer.outputs; ++unit) {
    T* gradient = layer.gradient + unit * stride;
    const T* output = layer.hidden_columns + unit * stride / numbers_per_cell<half>;
    for (int64_t row = 0; row < used; row += Vector<T>::lanes) {
      V positive;
#ifdef SSLFAST_BF16
      if constexpr (half) {
        positive = from_bfloat16(output + row / 2);
      } else
#endif
        positive = load(output + row);
      store(gradient + row, positive > V{} ? load(gradient + row) * scale : V{});
    }
  }
}

// From layer.gradient the cells of the error and the gradient of the bias.
template <bool half, typename T>
inline void make_error(const HeadLayer<T>& layer, int64_t used, int64_t stride) {
  using V = typename Vector<T>::type;
  for (int64_t unit = 0; unit < layer.outputs; ++unit) {
    V sum{};
    for (int64_t row = 0; row < used; row += Vector<T>::lanes) sum += load(layer.gradient + unit * stride + row);
    layer.bias_gradient[unit] = total_of<T>(sum);
  }
  cells_along_rows<half>(layer.gradient, layer.outputs, used, stride, layer.error_columns, stride);
  for (int64_t panel = 0; panel < layer.outputs; panel += head_panel) {
    const int64_t width = panel_width(layer.outputs, panel);
    T* cells = layer.error + panel * used / numbers_per_cell<half>;
    T* rows = half ? layer.activation : cells;  // by now nobody reads the activation
    transpose(layer.gradient + panel * stride, stride, width, used, rows, width);
    cells_along_rows<half>(rows, used, width, width, cells, width);
  }
}

// Every layer's outputs, and their cells; those along the batch only where there will be a backward pass.
template <bool half, bool training, typename T>
inline void run_forward(const Head<T>& head, const Minibatch<T>& batch, uint64_t step) {
  const T* rows = batch.rows;
  for (int64_t index = 0; index < head.depth; ++index) {
    const HeadLayer<T>& layer = head.layers[index];
    multiply_rows<half>(layer, rows, batch.used);
    if (index + 1 == head.depth) return;
    activate(layer, batch.used, training ? head.dropped : 0, Noise(head.key, step, static_cast<uint64_t>(index)));
    cells_along_columns<half>(layer.activation, batch.used, layer.outputs, layer.outputs, layer.hidden);
    rows = layer.hidden;
    if (!training) continue;
    T* columns = half ? layer.gradient : layer.hidden_columns;
    transpose(layer.activation, layer.outputs, batch.used, layer.outputs, columns, batch.stride);
    cells_along_columns<half>(columns, layer.outputs, batch.used, batch.stride, layer.hidden_columns);
  }
}

template <bool half, typename T>
double step(const Head<T>& head, const Minibatch<T>& batch, uint64_t number) {
  const int64_t used = batch.used, stride = batch.stride;
  run_forward<half, true>(head, batch, number);
  const HeadLayer<T>& last = head.layers[head.depth - 1];
  const double loss = softmax(last, head.classes, batch);
  transpose(last.activation, last.outputs, used, last.outputs, last.gradient, stride);
  for (int64_t index = head.depth - 1; index >= 0; --index) {
    const HeadLayer<T>& layer = head.layers[index];
    if (index + 1 < head.depth) mask_gradient<half>(layer, head.dropped, used, stride);
    make_error<half>(layer, used, stride);
    if (index > 0) multiply_error<half>(layer, used, stride, head.layers[index - 1].gradient);
    const T* columns = index > 0 ? head.layers[index - 1].hidden_columns : batch.columns;
    if (head.update.optimizer == Optimizer::adam || head.update.optimizer == Optimizer::adamw) {
      update_layer<half, true>(head.update, layer, index > 0, columns, used, stride);
    } else {
      update_layer<half, false>(head.update, layer, index > 0, columns, used, stride);
    }
  }
  return loss;
}

template <bool half, typename T>
void forward(const Head<T>& head, const Minibatch<T>& batch) {
  using V = typename Vector<T>::type;
  run_forward<half, false>(head, batch, 0);
  const HeadLayer<T>& last = head.layers[head.depth - 1];
  for (int64_t row = 0; row < batch.used; ++row) {
    T* logits = last.activation + row * last.outputs;
    for (int64_t k = 0; k < last.outputs; k += Vector<T>::lanes) {
      const V value = load(logits + k) + load(last.bias + k);
      store(logits + k, value);
    }
  }
}

template <bool half, typename T>
HeadKernels<T> kernels() {
  return {half, &prepare<half, T>, &refresh<half, T>, &step<half, T>, &forward<half, T>};
}

}  // namespace

namespace SSLFAST_CAPABILITY {

#ifdef SSLFAST_BF16
HeadKernels<float> half_head_kernels() { return kernels<true, float>(); }
#else
template <typename T>
HeadKernels<T> head_kernels() {
  return kernels<false, T>();
}

template HeadKernels<float> head_kernels<float>();
template HeadKernels<double> head_kernels<double>();
#endif

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
