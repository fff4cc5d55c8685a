// box<&f>: f as the boxed kernel that torch's stable ABI registers. The arguments lie on a stack of 64-bit values, of
// which the kernel owns the references.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "tensor.h"

namespace lowbit_torch {

inline std::string take_string(StringHandle handle) {  // torch's own conversion leaks the text up to 2.13
  size_t length;
  const char* text;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
  std::string copy(text, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return copy;
}

template <class T>
T unbox(StableIValue value) {
  using torch::stable::detail::to;
  if constexpr (std::is_same_v<T, tensor>) {
    return tensor(to<AtenTensorHandle>(value));
  } else if constexpr (std::is_same_v<T, std::optional<tensor>>) {
    const auto handle = to<std::optional<AtenTensorHandle>>(value);
    return handle ? std::optional<tensor>(tensor(*handle)) : std::nullopt;
  } else if constexpr (std::is_same_v<T, std::optional<std::string>>) {
    const auto handle = to<std::optional<StringHandle>>(value);
    return handle ? std::optional(take_string(*handle)) : std::nullopt;
  } else if constexpr (std::is_same_v<T, dtype>) {
    return {to<int32_t>(value)};
  } else if constexpr (std::is_same_v<T, std::string>) {
    return take_string(to<StringHandle>(value));
  } else {
    return to<T>(value);  // int64_t, double, bool
  }
}

inline void push(StableIValue* stack, tensor result) { stack[0] = torch::stable::detail::from(result.release()); }

template <class... T>
void push(StableIValue* stack, std::tuple<T...> results) {
  std::apply([&](auto&... result) { (push(stack++, std::move(result)), ...); }, results);
}

template <auto function>
struct boxed;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct boxed<function> {
  static void call(StableIValue* stack, uint64_t, uint64_t) { run(stack, std::index_sequence_for<Arguments...>()); }

 private:
  template <size_t... i>
  static void run(StableIValue* stack, std::index_sequence<i...>) {
    // Braces: all arguments are taken over, in order, before the function can throw.
    std::tuple<std::decay_t<Arguments>...> arguments{unbox<std::decay_t<Arguments>>(stack[i])...};
    if constexpr (std::is_void_v<Result>)
      std::apply(function, std::move(arguments));
    else
      push(stack, std::apply(function, std::move(arguments)));
  }
};

template <auto function>
inline constexpr auto box = &boxed<function>::call;

}  // namespace lowbit_torch
