#include "store/file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <system_error>
#include <utility>

#include "store/checksum.h"

namespace sslfast::store {

File::File(int descriptor, std::size_t size, std::vector<std::uint32_t> expected, std::size_t block_bytes)
    : size_(size),
      block_bytes_(block_bytes),
      shift_(std::has_single_bit(block_bytes) ? std::countr_zero(block_bytes) : 0),
      expected_(std::move(expected)),
      left_(expected_.size()) {
  verified_ = std::make_unique<std::atomic<unsigned char>[]>(expected_.size());
  // Read-only and shared: no limit on a process's own memory counts it, and the system may drop every page.
  void* const mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category());
  data_ = static_cast<const unsigned char*>(mapped);
}

File::~File() { munmap(const_cast<unsigned char*>(data_), size_); }

bool File::verify(std::size_t block) {
  if (verified(block)) return true;
  const std::size_t first = block * block_bytes_;
  if (crc32(0, data_ + first, std::min(block_bytes_, size_ - first)) != expected_[block]) return false;
  if (verified_[block].exchange(1, std::memory_order_acq_rel) == 0) left_.fetch_sub(1, std::memory_order_acq_rel);
  return true;
}

void File::read_ahead(std::size_t first, std::size_t bytes) const {
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t start = first / page * page;
  madvise(const_cast<unsigned char*>(data_) + start, first + bytes - start, MADV_WILLNEED);
}

}  // namespace sslfast::store
