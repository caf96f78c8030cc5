// A file that is mapped for reading and whose blocks are compared with their checksums when they are first touched.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace sslfast::store {

class File {
 public:
  // Maps `size` bytes of what the descriptor names, which stays the caller's. Throws std::system_error.
  File(int descriptor, std::size_t size, std::vector<std::uint32_t> expected, std::size_t block_bytes);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const unsigned char* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t blocks() const { return expected_.size(); }
  std::size_t block_bytes() const { return block_bytes_; }
  std::size_t block_of(std::size_t byte) const { return shift_ != 0 ? byte >> shift_ : byte / block_bytes_; }
  bool verified(std::size_t block) const { return verified_[block].load(std::memory_order_acquire) != 0; }
  // Whether all blocks were compared.
  bool whole() const { return left_.load(std::memory_order_acquire) == 0; }
  // Compares a block unless that was done; false where it is damaged.
  bool verify(std::size_t block);
  // Asks the system to read these bytes, without waiting for them.
  void read_ahead(std::size_t first, std::size_t bytes) const;

 private:
  const unsigned char* data_;
  std::size_t size_, block_bytes_;
  int shift_;  // where a block's length is a power of two
  std::vector<std::uint32_t> expected_;
  std::unique_ptr<std::atomic<unsigned char>[]> verified_;
  std::atomic<std::size_t> left_;
};

}  // namespace sslfast::store
