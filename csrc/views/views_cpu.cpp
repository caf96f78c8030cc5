// Augmented views of a batch, each made by one thread from the bytes of its image (views_pixels.cpp).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "sslfast/capability.h"
#include "sslfast/check.h"
#include "views.h"

namespace sslfast {
namespace {

// Columns of `whole` and `real`; sslfast/data/native.py writes them.
constexpr int64_t whole_columns = 11, real_columns = 14;

// Colours turn in the plane of I and Q (YIQ, NTSC), as in sslfast/data/render.py.
constexpr double to_yiq[9] = {0.299, 0.587, 0.114, 0.596, -0.274, -0.321, 0.211, -0.523, 0.311};

std::array<double, 9> inverse(const double* m) {
  std::array<double, 9> result;
  double determinant = 0;
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) {
      const int a = (row + 1) % 3, b = (row + 2) % 3, c = (column + 1) % 3, d = (column + 2) % 3;
      result[column * 3 + row] = m[a * 3 + c] * m[b * 3 + d] - m[a * 3 + d] * m[b * 3 + c];
    }
  }
  for (int k = 0; k < 3; ++k) determinant += m[k] * result[k * 3];
  for (double& value : result) value /= determinant;
  return result;
}

void colour_matrix(float saturation, float hue, float* matrix) {
  static const std::array<double, 9> from_yiq = inverse(to_yiq);
  if (saturation == 1 && hue == 0) {
    for (int k = 0; k < 9; ++k) matrix[k] = k % 4 == 0;
    return;
  }
  const double angle = hue * (std::acos(-1.0) / 180), s = saturation * std::sin(angle),
               c = saturation * std::cos(angle);
  for (int row = 0; row < 3; ++row) {
    const double *back = from_yiq.data() + row * 3,
                 turned[3] = {back[0], back[1] * c - back[2] * s, back[1] * s + back[2] * c};
    for (int column = 0; column < 3; ++column) {
      matrix[row * 3 + column] = static_cast<float>(turned[0] * to_yiq[column] + turned[1] * to_yiq[3 + column] +
                                                    turned[2] * to_yiq[6 + column]);
    }
  }
}

int64_t taps_of(int64_t in, int64_t out) {
  return 2 * ((std::max(in, out) + out - 1) / out) + 1;  // 2 ceil(support) + 1
}

int64_t padded(int64_t count) { return (count + view_padding - 1) / view_padding * view_padding; }

// Grows and is shared by the views of a task.
class Scratch {
 public:
  ViewScratch of(const View& view) {
    ViewScratch result;
    const int64_t size = view.size, width = padded(size);
    result.column_taps = taps_of(view.box_width, size);
    result.row_taps = taps_of(view.box_height, size);
    // A line of pixels, and behind it what taps of weight 0 may read.
    const int64_t plane = padded(view.box_width + result.column_taps + 2 * view_padding);
    result.plane_length = plane;
    starts_.resize(std::max<size_t>(starts_.size(), 2 * width + size));
    result.column_start = starts_.data();
    result.column_base = starts_.data() + width;
    result.row_start = starts_.data() + 2 * width;
    const int64_t padded_view = size + 2 * view.blur_radius;
    const int64_t parts[] = {result.column_taps * width, size * result.row_taps, 3 * plane, 3 * plane,
                             view.moved || view.blur > 0 ? std::max(3 * size * size, size * padded_view) : 0};
    float** const places[] = {&result.column_weight, &result.row_weight, &result.line, &result.mixed, &result.plane};
    int64_t total = 0;
    for (const int64_t part : parts) total += padded(part);
    numbers_.resize(std::max<size_t>(numbers_.size(), total));
    total = 0;
    for (int k = 0; k < 5; ++k) {
      *places[k] = numbers_.data() + total;
      total += padded(parts[k]);
    }
    return result;
  }

 private:
  std::vector<int32_t> starts_;
  std::vector<float> numbers_;
};

void check_table(const char* name, const Tensor& table, ScalarType type, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(table.scalar_type() == type && table.is_contiguous() && table.dim() == 2 && table.size(0) == rows &&
                      table.size(1) == columns,
                  "render_views: ", name, " must be a contiguous table of ", rows, " x ", columns);
}

void render_views_cpu(const Tensor& out, const Tensor& pixels, const Tensor& offsets, const Tensor& sizes,
                      int64_t column, int64_t channel, const Tensor& whole, const Tensor& real, int64_t blur_radius,
                      bool parallel) {
  STD_TORCH_CHECK(out.scalar_type() == ScalarType::Float && out.is_contiguous() && out.dim() == 4 && out.size(1) == 3 &&
                      out.size(2) == out.size(3),
                  "render_views: out must be contiguous float32 (V, 3, size, size)");
  STD_TORCH_CHECK(pixels.scalar_type() == ScalarType::Byte && pixels.is_contiguous() && pixels.dim() == 1,
                  "render_views: pixels must be contiguous uint8 of one dimension");
  const int64_t count = out.size(0), size = out.size(2);
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Long && offsets.is_contiguous() && offsets.dim() == 1 &&
                      offsets.size(0) == count,
                  "render_views: offsets must be contiguous int64 (V,)");
  check_table("sizes", sizes, ScalarType::Int, count, 3);
  check_table("whole", whole, ScalarType::Int, count, whole_columns);
  check_table("real", real, ScalarType::Float, count, real_columns);
  STD_TORCH_CHECK((column == 3 && channel == 1) || (column == 1 && channel >= 0),
                  "render_views: pixels must be interleaved, planar or grey");
  STD_TORCH_CHECK(blur_radius >= 0 && blur_radius <= 64, "render_views: blur_radius must be from 0 to 64");
  const uint8_t* bytes = pixels.const_data_ptr<uint8_t>();
  const int64_t* offset = offsets.const_data_ptr<int64_t>();
  const int32_t *measures = sizes.const_data_ptr<int32_t>(), *wholes = whole.const_data_ptr<int32_t>();
  const float* reals = real.const_data_ptr<float>();
  float* target = out.mutable_data_ptr<float>();
  std::vector<View> views(count);
  for (int64_t index = 0; index < count; ++index) {
    View& view = views[index];
    const int32_t *measure = measures + 3 * index, *w = wholes + whole_columns * index;
    const float* r = reals + real_columns * index;
    view.height = measure[0], view.width = measure[1], view.row = measure[2];
    view.column = column, view.channel = channel, view.size = size, view.blur_radius = blur_radius;
    const int64_t last = (view.height - 1) * view.row + (view.width - 1) * column + 2 * channel;
    STD_TORCH_CHECK(view.height > 0 && view.width > 0 && view.row > 0 && offset[index] >= 0 &&
                        offset[index] + last < pixels.numel(),
                    "render_views: image ", index, " does not lie within the pixels");
    view.image = bytes + offset[index];
    view.top = w[0], view.left = w[1], view.box_height = w[2], view.box_width = w[3];
    STD_TORCH_CHECK(view.box_height > 0 && view.box_width > 0, "render_views: box ", index, " is empty");
    view.flip = w[4], view.vertical_flip = w[5], view.solarise = w[6];
    const int64_t top = std::clamp<int64_t>(w[7], 0, size), left = std::clamp<int64_t>(w[8], 0, size);
    view.erase[0] = top, view.erase[1] = left;
    view.erase[2] = std::clamp<int64_t>(int64_t{w[7]} + w[9], top, size) - top;
    view.erase[3] = std::clamp<int64_t>(int64_t{w[8]} + w[10], left, size) - left;
    view.brightness = r[0], view.contrast = r[1], view.blur = r[4], view.fill = r[5];
    colour_matrix(r[2], r[3], view.colour);
    constexpr float unmoved[8] = {1, 0, 0, 0, 1, 0, 0, 0};
    std::copy_n(r + 6, 8, view.perspective);
    view.moved = !std::equal(unmoved, unmoved + 8, view.perspective);
    view.out = target + index * 3 * size * size;
  }
  const RenderView render = SSLFAST_CHOOSE(view_renderer);
  const auto some = [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t index = begin; index < end; ++index) render(views[index], scratch.of(views[index]));
  };
  if (parallel) {
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, 32768 / std::max<int64_t>(1, size * size)), some);
  } else {
    some(0, count);
  }
}

}  // namespace
}  // namespace sslfast

STABLE_TORCH_LIBRARY_IMPL(sslfast, CPU, m) { m.impl("render_views", TORCH_BOX(&sslfast::render_views_cpu)); }
