// Tests in one page, so that nothing has to be installed for them.
//
//   TEST(packing_inverts) {
//     CHECK(n > 0, "n = %d", n);      // goes on after a failure; the text is optional, printf style
//     CHECK_EQ(got, wanted);          // prints both
//   }
//
// The program runs every test, or those whose names contain its first argument.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>

namespace test {

struct registered {
  const char* name;
  void (*run)();
  registered* next;
  static inline registered *first = nullptr, **end = &first;
  registered(const char* test_name, void (*test)()) : name(test_name), run(test), next(nullptr) {
    *end = this;
    end = &next;
  }
};

inline int failures = 0;
constexpr int max_printed = 20;  // of one test

[[gnu::format(printf, 3, 4)]] inline void fail(const char* file, int line, const char* format, ...) {
  if (++failures > max_printed) return;
  std::fprintf(stderr, "  %s:%d: ", file, line);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

template <class T>
std::string text(const T& value) {
  std::ostringstream stream;
  stream.precision(9);
  stream << +value;
  return stream.str();
}
inline std::string text(const std::string& value) { return '"' + value + '"'; }
inline std::string text(const char* value) { return value ? text(std::string(value)) : "null"; }

}  // namespace test

#define TEST(name)                                              \
  static void name();                                           \
  static const test::registered registered_##name(#name, name); \
  static void name()

#define CHECK(condition, ...)                                                                  \
  do {                                                                                         \
    if (!(condition)) test::fail(__FILE__, __LINE__, #condition __VA_OPT__(": ") __VA_ARGS__); \
  } while (false)
#define CHECK_EQ(a, b)                                                                                          \
  do {                                                                                                          \
    if (!((a) == (b)))                                                                                          \
      test::fail(__FILE__, __LINE__, "%s == %s: %s, %s", #a, #b, test::text(a).c_str(), test::text(b).c_str()); \
  } while (false)

#ifndef LOWBIT_OWN_MAIN
int main(int argc, char** argv) {
  int failed = 0, count = 0;
  for (const test::registered* t = test::registered::first; t; t = t->next) {
    if (argc > 1 && !std::strstr(t->name, argv[1])) continue;
    std::printf("%s\n", t->name);
    std::fflush(stdout);
    test::failures = 0;
    t->run();
    if (test::failures > test::max_printed) std::fprintf(stderr, "  and %d more\n", test::failures - test::max_printed);
    failed += test::failures > 0;
    ++count;
  }
  std::printf("%d of %d tests failed\n", failed, count);
  return failed || !count;
}
#endif
