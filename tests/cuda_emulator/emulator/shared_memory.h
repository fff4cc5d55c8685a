// The shared memory of a CTA: bytes, and for every byte what a checker has to know.
//
// For each 4-byte word: which bytes were ever written, which an asynchronous copy may overwrite at any moment, how many
// asynchronous products still read it, who wrote last and who has read since. An access is a race if the clock of its
// warp has not seen the conflicting one: of another warp, or of another lane since the warp last synchronised its
// memory (sync_warp or a barrier; PTX ISA 8, memory consistency model).
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <vector>

namespace emulator {

struct lane;
struct warp;

inline constexpr uint32_t shared_window = 1024;  // address of the first byte

class shared_memory {
 public:
  // `slots`: warps of the cluster and one for its asynchronous engine.
  void reset(int64_t bytes, int slots);

  int64_t size() const { return size_; }
  uint8_t* bytes(uint32_t address) { return data_.data() + (address - shared_window); }

  // Checks and notes; the caller then touches the bytes. `what` names the access in errors.
  void check_range(uint32_t address, int bytes, int alignment, const char* what, std::source_location where);
  void read(lane& who, uint32_t address, int bytes, const char* what, std::source_location where);
  void write(lane& who, uint32_t address, int bytes, const char* what, std::source_location where);

  // A copy into these bytes has been issued by `who`: nobody may touch them until it lands.
  void begin_write(lane& who, uint32_t address, int bytes, bool async_proxy, const char* what,
                   std::source_location where);
  void cancel_write(uint32_t address, int bytes);  // the bytes are as before; a write follows
  // The engine has written, at this epoch of its own clock.
  void engine_wrote(uint32_t address, int bytes, int engine_slot, uint32_t epoch);

  // An asynchronous read of these bytes has been issued: they must have been written and fenced, and stay until it
  // ends. Each warp that takes part says so; `first` for one of them.
  void begin_read(lane& who, uint32_t address, int bytes, bool first, const char* what, std::source_location where);
  void end_read(warp& who, uint32_t address, int bytes);

  // Whoever wrote this word (an mbarrier) did so before this lane, and fenced it for asynchronous work.
  void require_seen(lane& who, uint32_t address, bool fenced, const char* what, std::source_location where);

 private:
  struct word {
    uint32_t write_epoch;
    uint16_t writer;  // clock slot * 64 + lane
    uint16_t reader;  // of the last warp that read; lane 63: several
    uint8_t write_mask, written, flight, read_mask;
    uint32_t reading;
  };

  bool saw_write(const lane& who, const word& w, bool fenced) const;
  void check_reads(lane& who, const word& w, size_t index, unsigned mask, const char* what, std::source_location where);
  [[noreturn]] void race(uint32_t address, const char* what, const char* other, int slot, int other_lane,
                         std::source_location where);
  [[noreturn]] void in_flight(uint32_t address, const char* what, std::source_location where);

  int64_t size_ = 0;
  size_t slots_ = 1;
  std::vector<uint8_t> data_;
  std::vector<word> words_;
  std::vector<uint32_t> reads_;  // [word][slot] epoch of the warp's last read
};

}  // namespace emulator
