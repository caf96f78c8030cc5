// The feature store's engine for Python: sslfast._store.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "store/checksum.h"
#include "store/convert.h"
#include "store/file.h"
#include "store/gather.h"
#include "store/vectors.h"
#include "store/workers.h"

namespace py = pybind11;

namespace sslfast::store {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;  // bound with noconvert: never a copy

void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

std::uint32_t checksum(const py::buffer& content, std::uint32_t value) {
  const py::buffer_info info = content.request();
  require(info.ndim == 1 && info.strides[0] == info.itemsize, "a checksum is of one run of bytes");
  const auto* data = static_cast<const unsigned char*>(info.ptr);
  const std::size_t size = info.size * info.itemsize;
  py::gil_scoped_release release;
  return crc32(value, data, size);
}

std::shared_ptr<File> open_file(int descriptor, std::size_t size, std::vector<std::uint32_t> expected,
                                std::size_t block) {
  require(size > 0 && block > 0 && expected.size() == (size + block - 1) / block, "one checksum for each block");
  try {
    return std::make_shared<File>(descriptor, size, std::move(expected), block);
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
}

// The first damaged block of [first, stop), or -1.
std::int64_t check(File& file, std::size_t first, std::size_t stop, int threads) {
  require(first <= stop && stop <= file.blocks(), "no such block");
  py::gil_scoped_release release;
  std::atomic<std::int64_t> damaged{-1};
  parallel(stop - first, 4, threads, [&](std::size_t from, std::size_t to) {
    for (std::size_t block = first + from; block < first + to; ++block) {
      if (file.verify(block)) continue;
      std::int64_t seen = damaged.load();
      const auto found = static_cast<std::int64_t>(block);
      while ((seen < 0 || found < seen) && !damaged.compare_exchange_weak(seen, found)) {
      }
    }
  });
  return damaged;
}

Kind kind_of(const std::string& name) {
  if (name == "float32") return Kind::float32;
  if (name == "float16") return Kind::float16;
  require(name == "bfloat16", "dtype must be float32, float16 or bfloat16");
  return Kind::bfloat16;
}

std::shared_ptr<Rows> make_rows(const std::vector<std::tuple<std::shared_ptr<File>, std::size_t, std::size_t>>& parts,
                                std::size_t features, const std::string& dtype) {
  const Kind kind = kind_of(dtype);
  require(features > 0, "a row has a feature");
  std::vector<Part> runs;
  for (const auto& [file, rows, offset] : parts) {
    require(file != nullptr && offset <= file->size(), "a part starts in its file");
    require(rows <= (file->size() - offset) / item_bytes(kind) / features, "a part ends in its file");
    runs.push_back({file, rows, offset});
  }
  return std::make_shared<Rows>(std::move(runs), features, kind);
}

// (outcome, position or part, block); outcome 0 is done.
std::tuple<int, std::size_t, std::size_t> gather(const Rows& self, const Array<std::int64_t>& rows,
                                                 Array<std::uint8_t>& out, bool as_stored,
                                                 const std::optional<Array<float>>& mean,
                                                 const std::optional<Array<float>>& deviation, bool finite,
                                                 bool read_ahead, int threads) {
  require(rows.ndim() == 1, "rows must be a list of numbers");
  const std::size_t width = self.features() * (as_stored ? item_bytes(self.kind()) : sizeof(float));
  require(static_cast<std::size_t>(out.size()) == rows.size() * width, "out must hold the rows");
  require(mean.has_value() == deviation.has_value(), "mean and deviation come together");
  require(!as_stored || (!mean && !finite), "rows as they are stored are neither standardised nor looked at");
  for (const auto& each : {mean, deviation}) {
    require(!each || static_cast<std::size_t>(each->size()) == self.features(), "one mean and deviation per feature");
  }
  const Request request{rows.data(),
                        static_cast<std::size_t>(rows.size()),
                        out.mutable_data(),
                        as_stored,
                        mean ? mean->data() : nullptr,
                        deviation ? deviation->data() : nullptr,
                        finite,
                        read_ahead,
                        threads};
  py::gil_scoped_release release;
  const Result result = self.gather(request);
  return {static_cast<int>(result.outcome), result.where, result.block};
}

void moments(const Array<float>& values, double before, Array<double>& mean, Array<double>& squares, int threads) {
  require(values.ndim() == 2 && values.shape(0) > 0, "values must be rows of features");
  const std::size_t rows = values.shape(0), width = values.shape(1);
  require(static_cast<std::size_t>(mean.size()) == width && static_cast<std::size_t>(squares.size()) == width,
          "one mean and one sum per feature");
  const float* const data = values.data();
  double *const means = mean.mutable_data(), *const sums = squares.mutable_data();
  py::gil_scoped_release release;
  parallel(width, 64, threads, [&](std::size_t first, std::size_t last) {
    add_moments(data, rows, width, first, last, before, means, sums);
  });
}

}  // namespace

PYBIND11_MODULE(_store, module) {
  using py::arg;
  module.doc() = "The feature store's engine: checksums, mapped files, rows gathered on several threads.";
  module.def("crc32", &checksum, arg("content"), arg("value") = 0);
  module.def(
      "vector_bits",
      [](int limit) {
        require(limit == 0 || limit == 64 || limit == 128 || limit == 256 || limit == 512, "no such vectors");
        limit_vectors(limit);
        return vector_bits();
      },
      arg("limit") = 0);
  module.def("moments", &moments, arg("values").noconvert(), arg("before"), arg("mean").noconvert(),
             arg("squares").noconvert(), arg("threads"));
  py::class_<File, std::shared_ptr<File>>(module, "File", py::buffer_protocol())
      .def(py::init(&open_file), arg("descriptor"), arg("size"), arg("expected"), arg("block_bytes"))
      .def_buffer([](File& file) {
        return py::buffer_info(const_cast<unsigned char*>(file.data()), 1,
                               py::format_descriptor<std::uint8_t>::format(), 1,
                               {static_cast<py::ssize_t>(file.size())}, {py::ssize_t{1}}, true);
      })
      .def("check", &check, arg("first"), arg("stop"), arg("threads"));
  py::class_<Rows, std::shared_ptr<Rows>>(module, "Rows")
      .def(py::init(&make_rows), arg("parts"), arg("features"), arg("dtype"))
      .def("gather", &gather, arg("rows").noconvert(), arg("out").noconvert(), arg("as_stored"),
           arg("mean").noconvert().none(true), arg("deviation").noconvert().none(true), arg("finite"),
           arg("read_ahead"), arg("threads"));
}

}  // namespace sslfast::store
