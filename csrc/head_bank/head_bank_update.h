#pragma once
// The weight's gradient, tile by tile into the optimiser: it never reaches memory.
#include <cstdint>

#include "head_bank.h"
#include "head_bank_cells.h"
#include "head_bank_products.h"
#include "sslfast/score_rows.h"

namespace sslfast {
namespace {

template <typename T>
inline typename Vector<T>::type square_root(typename Vector<T>::type value) {
#if SSLFAST_VECTOR_BITS == 512
  if constexpr (sizeof(T) == 4) return _mm512_maskz_sqrt_ps(0xffff, value);
#endif
  for (int lane = 0; lane < Vector<T>::lanes; ++lane) {
    value[lane] = sizeof(T) == 4 ? __builtin_sqrtf(value[lane]) : __builtin_sqrt(value[lane]);
  }
  return value;
}

// w, m and v of one vector after a step along gradient g.
template <bool adam, typename T>
struct Rule {
  using V = typename Vector<T>::type;
  V momentum, rest_of_momentum, second_decay, rest_of_second, epsilon, weight_decay, shrink, rate, root, scale;

  // scale: LARS's, of gradient and decay.
  Rule(const HeadUpdate<T>& update, T scale, T decay) {
    momentum = splat(update.momentum);
    rest_of_momentum = splat(update.rest_of_momentum);
    second_decay = splat(update.second_decay);
    rest_of_second = splat(update.rest_of_second);
    epsilon = splat(update.epsilon);
    const bool decoupled = update.optimizer == Optimizer::adamw;
    weight_decay = splat(decoupled ? T(0) : decay);
    shrink = splat(decoupled ? update.adamw_shrink : T(1));
    rate = splat(adam ? update.adam_rate : update.rate);
    root = splat(adam ? update.adam_root : T(1));
    this->scale = splat(scale);
  }

  V operator()(V g, T* first, T* second, V w) const {
    if constexpr (adam) {
      g += weight_decay * w;
      const V m = momentum * load(first) + rest_of_momentum * g;
      const V v = second_decay * load(second) + rest_of_second * g * g;
      store(first, m);
      store(second, v);
      return w * shrink - rate * m / (square_root<T>(v) * root + epsilon);
    } else {
      g = (g + weight_decay * w) * scale;
      const V m = momentum * load(first) + g;
      store(first, m);
      return w - rate * (g + momentum * m);
    }
  }
};

// What LARS multiplies a layer's gradient by.
template <bool half, typename T>
inline T layer_scale(const HeadUpdate<T>& update, const HeadLayer<T>& layer, const T* input_columns, int64_t used,
                     int64_t stride) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  double weights = 0, gradients = 0;
  for (int64_t panel = 0; panel < layer.outputs; panel += head_panel) {
    const int64_t width = panel_width(layer.outputs, panel);
    const T* error = layer.error + panel * used / numbers_per_cell<half>;
    const T* weight = layer.weight + panel * layer.inputs;
    each_tile<T>(layer.inputs, width, [&]<int rows, int vectors>(int64_t row, int64_t column) {
      constexpr int64_t per = numbers_per_cell<half>;
      V sum[rows][vectors] = {};
      add_product<half>(sum, input_columns + row * stride / per, stride / per, error + column, width, used / per);
      V of_weight{}, of_gradient{};
      for (int r = 0; r < rows; ++r) {
        for (int n = 0; n < vectors; ++n) {
          const V w = load(weight + (row + r) * width + column + n * lanes);
          of_weight += w * w;
          of_gradient += sum[r][n] * sum[r][n];
        }
      }
      weights += total_of<T>(of_weight);
      gradients += total_of<T>(of_gradient);
    });
  }
  weights = __builtin_sqrt(weights);
  gradients = __builtin_sqrt(gradients);
  if (weights == 0 || gradients == 0) return T(1);
  return static_cast<T>(update.trust * weights / (gradients + update.weight_decay * weights + update.epsilon));
}

// The weight's gradient, input_columns (inputs, batch) error (batch, outputs), tile by tile into the optimiser.
template <bool half, bool adam, typename T>
inline void update_weight(const HeadUpdate<T>& update, T scale, const HeadLayer<T>& layer,
                          [[maybe_unused]] bool backward, const T* input_columns, int64_t used, int64_t stride) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  constexpr int64_t per = numbers_per_cell<half>;
  const Rule<adam, T> rule(update, scale, update.weight_decay);
  for (int64_t panel = 0; panel < layer.outputs; panel += head_panel) {
    const int64_t width = panel_width(layer.outputs, panel), at = panel * layer.inputs;
    const T* error = layer.error + panel * used / per;
    each_tile<T>(layer.inputs, width, [&]<int rows, int vectors>(int64_t row, int64_t column) {
      const int64_t place = at + row * width + column;
      V sum[rows][vectors] = {};
      // What the next tile of the same columns updates.
#pragma GCC unroll 24
      for (int line = 0; line < rows * vectors; ++line) {
        const int64_t next = place + (rows + line / vectors) * width + line % vectors * lanes;
        __builtin_prefetch(layer.weight + next, 1);
        __builtin_prefetch(layer.first + next, 1);
      }
      add_product<half>(sum, input_columns + row * stride / per, stride / per, error + column, width, used / per);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < vectors; ++n) {
          const int64_t here = place + r * width + n * lanes;
          sum[r][n] = rule(sum[r][n], layer.first + here, layer.second + here, load(layer.weight + here));
          store(layer.weight + here, sum[r][n]);
        }
      }
#ifdef SSLFAST_BF16
      if constexpr (half) {
        T* pairs = layer.forward_weight + at / 2 + row / 2 * width + column;
        T* halves = layer.backward_weight + place / 2;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r += 2) {
#pragma GCC unroll 4
          for (int n = 0; n < vectors; ++n) {
            store_cells(pairs + r / 2 * width + n * lanes, to_pairs(sum[r][n], sum[r + 1][n]));
            if (!backward) continue;
            store_cells(halves + (r * width + n * lanes) / 2, to_bfloat16(sum[r][n]));
            store_cells(halves + ((r + 1) * width + n * lanes) / 2, to_bfloat16(sum[r + 1][n]));
          }
        }
      }
#endif
    });
  }
}

template <bool half, bool adam, typename T>
inline void update_layer(const HeadUpdate<T>& update, const HeadLayer<T>& layer, bool backward, const T* input_columns,
                         int64_t used, int64_t stride) {
  const bool lars = update.optimizer == Optimizer::lars;
  const T scale = lars ? layer_scale<half>(update, layer, input_columns, used, stride) : T(1);
  update_weight<half, adam>(update, scale, layer, backward, input_columns, used, stride);
  // LARS leaves biases alone: neither decay nor a rate of their own.
  const Rule<adam, T> rule(update, T(1), lars ? T(0) : update.weight_decay);
  for (int64_t k = 0; k < layer.outputs; k += Vector<T>::lanes) {
    store(layer.bias + k,
          rule(load(layer.bias_gradient + k), layer.bias_first + k, layer.bias_second + k, load(layer.bias + k)));
  }
}

}  // namespace
}  // namespace sslfast
