#include "layout/description.h"

#include <cstdio>
#include <cstring>

#include "gemm/status.h"

namespace lowbit {
namespace {

constexpr const char* zero_points_word = "zero_points";
constexpr int8_t some_zero_points = 0;

// Reads a text from left to right; after the first thing that does not fit, nothing does.
class reader {
 public:
  explicit reader(const char* text) : at_(text) {}

  // Up to the next space, which is skipped. Empty at the end of the text.
  template <size_t size>
  void word(char (&out)[size]) {
    const size_t length = std::strcspn(at_, " ");
    good_ &= length < size;
    if (!good_) return;
    std::memcpy(out, at_, length);
    out[length] = 0;
    at_ += length + (at_[length] == ' ' && at_[length + 1] ? 1 : 0);
  }
  // Decimal digits, at most 18 of them, and then the letter `end` (a space: or nothing).
  int64_t number(char end) {
    int64_t value = 0;
    int digits = 0;
    for (; *at_ >= '0' && *at_ <= '9' && digits < 19; ++at_, ++digits) value = value * 10 + (*at_ - '0');
    good_ &= digits > 0 && digits < 19 && (*at_ == end || (end == ' ' && !*at_));
    at_ += good_ && *at_ ? 1 : 0;
    return value;
  }
  bool good() const { return good_; }
  bool done() const { return good_ && !*at_; }

 private:
  const char* at_;
  bool good_ = true;
};

int find_dtype(const char* name) {
  for (int dtype = LOWBIT_F32; dtype <= LOWBIT_U8; ++dtype)
    if (std::strcmp(dtype_name(dtype), name) == 0) return dtype;
  return -1;
}

}  // namespace

lowbit_status weight_to_text(const lowbit_weight& w, char* text, size_t bytes) {
  if (const lowbit_status status = check_weight_description(w)) return status;
  const int needed =
      std::snprintf(text, bytes, "%s %lldx%lld %lldx%lld %s%s%s", format_at(w.format).name, static_cast<long long>(w.n),
                    static_cast<long long>(w.k), static_cast<long long>(w.group_n), static_cast<long long>(w.group_k),
                    dtype_name(w.scale_dtype), w.zero_points ? " " : "", w.zero_points ? zero_points_word : "");
  if (static_cast<size_t>(needed) < bytes) return LOWBIT_OK;
  return fail(LOWBIT_INVALID_VALUE, "the description has %d letters and its end: %zu bytes do not hold them", needed,
              bytes);
}

lowbit_status weight_from_text(const char* text, lowbit_weight* weight) {
  reader read(text);
  char format[16] = "", dtype[16] = "", last[16] = "";
  lowbit_weight w{};
  read.word(format);
  w.n = read.number('x');
  w.k = read.number(' ');
  w.group_n = read.number('x');
  w.group_k = read.number(' ');
  read.word(dtype);
  read.word(last);
  const bool zero_points = std::strcmp(last, zero_points_word) == 0;
  if (!read.done() || (*last && !zero_points))
    return fail(LOWBIT_INVALID_VALUE, "'%.80s' describes no weight: it must be like 'int4 4096x11008 1x128 bfloat16'",
                text);
  w.format = find_format(format);
  if (w.format < 0) return fail(LOWBIT_INVALID_VALUE, "'%.80s' describes no weight: no format '%s'", text, format);
  const int scale_dtype = find_dtype(dtype);
  if (scale_dtype < 0) return fail(LOWBIT_INVALID_VALUE, "'%.80s' describes no weight: no dtype '%s'", text, dtype);
  w.scale_dtype = static_cast<lowbit_dtype>(scale_dtype);
  w.zero_points = zero_points ? &some_zero_points : nullptr;
  w.global_scale = 1;
  if (const lowbit_status status = check_weight_description(w)) return status;
  *weight = w;
  return LOWBIT_OK;
}

}  // namespace lowbit
