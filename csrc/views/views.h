#pragma once
// What views_cpu.cpp asks of one capability's kernel (views_pixels.cpp).
#include <cstdint>

namespace sslfast {

// One view: what it is cut out of, what was drawn for it (sslfast/data/drawing.py), and where it goes.
struct View {
  const uint8_t*
      image;  // its first pixel; channel c of pixel (y, x) is y * row + x * column + c * channel bytes behind
  int64_t height, width, row, column, channel;
  int64_t top, left, box_height, box_width;  // may reach out of the image, where everything is 0
  bool flip, vertical_flip, solarise;
  int64_t erase[4];  // top, left, height, width, inside the view
  float brightness, contrast;
  float colour[9];  // of saturation and hue, row by row
  float blur;       // standard deviation; 0: none
  float fill;
  bool moved;            // whether there is a perspective
  float perspective[8];  // see ViewParameters.perspective
  int64_t size;          // of the view, in pixels
  int64_t blur_radius;
  float* out;  // (3, size, size), in [0, 1]
};

// Numbers of columns are rounded up to whole vectors of the widest kind.
constexpr int64_t view_padding = 16;

// Memory that a view is made in; how much of each is said by `scratch_of`.
struct ViewScratch {
  int32_t* column_start;  // (padded size): where the pixels of an output column begin behind `column_base`
  int32_t* column_base;   // (padded size): where those of a vector of columns begin in a plane of `line`
  float* column_weight;   // (column taps, padded size)
  int32_t* row_start;     // (size)
  float* row_weight;      // (size, row taps)
  float* line;            // (3, plane length): the pixels of the crop that an output row is made of, blended into one
  float* mixed;           // the same with the colours of a pixel together
  float* plane;           // one channel of the view with room around it, or all three without
  int64_t column_taps, row_taps, plane_length;
};

using RenderView = void (*)(const View& view, const ViewScratch& scratch);

namespace portable {
RenderView view_renderer();
}
namespace avx2 {
RenderView view_renderer();
}
namespace avx512 {
RenderView view_renderer();
}

}  // namespace sslfast
