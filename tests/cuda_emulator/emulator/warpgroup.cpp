#include "emulator/warpgroup.h"

#include <algorithm>
#include <cstring>

#include "emulator/arithmetic.h"
#include "emulator/bulk.h"

namespace emulator {

namespace {

constexpr uint32_t poison = 0x7fbadbad;

// 16 bytes of B each: row by row of N, two for a row [9.7.15.5.1.2: matrix descriptor, K-major operands].
std::vector<uint32_t> pieces_of_b(uint64_t descriptor, int columns, place where) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const auto base = static_cast<uint32_t>(descriptor >> 49 & 7);
  const int modes[4] = {0, 128, 64, 32};
  const int swizzle = modes[descriptor >> 62];
  const auto pitch = static_cast<uint32_t>(swizzle ? swizzle : 16);
  if (base) error(where, "wgmma: a descriptor with base offset %u is not modelled", base);
  if (swizzle && start % (8 * pitch) >= pitch)
    error(where, "wgmma: B starts at shared offset %u, not in the first row of a %d-byte swizzle's block",
          start - shared_window, swizzle);
  std::vector<uint32_t> pieces;
  for (uint32_t n = 0; n < static_cast<uint32_t>(columns); ++n)
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t along_k = swizzle ? half * 16 : half * leading;
      pieces.push_back(swizzled(start + n / 8 * stride + n % 8 * pitch + along_k, swizzle));
    }
  return pieces;
}

}  // namespace

struct warpgroup_products {
  struct product {
    uint64_t descriptor;
    int columns;
    element type;
    bool accumulate;
    place where;
    std::vector<uint32_t> pieces;
    unsigned issued = 0;  // bits of the four warps
    bool done = false;
    uint32_t a[4][32][4];
    uint32_t* d[4][32];
    std::vector<uint32_t> sums[4];  // [32][columns / 2] at the issue, then after
    clock_vector clock;
  };
  struct view {  // of a warp
    warp* owner = nullptr;
    size_t issued = 0, retired = 0;  // counts
    bool fenced = false;
    std::deque<size_t> groups;  // counts of products up to the end of each committed group
    size_t wanted = 0;          // waits for this count
  };

  std::deque<product> products;
  size_t base = 0;  // index of products.front()
  view views[4];

  product& at(size_t index) { return products[index - base]; }
  size_t complete() const {  // how many all four have issued
    size_t count = views[0].issued;
    for (const view& v : views) count = std::min(count, v.issued);
    return count;
  }
  void settle();

 private:
  void compute(size_t index, warp& waiter);
  void retire(view& v, int index);
};

namespace {

warpgroup_products& group_of(warp& w) {
  cta& c = *w.owner;
  const auto index = static_cast<size_t>(w.index / 4);
  if (c.products.size() <= index) c.products.resize(index + 1);
  if (!c.products[index]) {
    c.products[index] = std::make_shared<warpgroup_products>();
    for (int i = 0; i < 4; ++i) c.products[index]->views[i].owner = c.warps[index * 4 + static_cast<size_t>(i)].get();
  }
  return *c.products[index];
}

template <class Sum>
void multiply_fragments(const uint32_t (&a)[32][4], const std::vector<uint32_t>& b_words, std::vector<uint32_t>& sums,
                        int columns, element type) {
  using value = std::conditional_t<std::is_same_v<Sum, float>, double, int8_t>;
  const int bits = type == element::bf16 || type == element::f16 ? 16 : 8;
  const int elements = 32 / bits, depth = 8 * elements;
  value av[16 * 32];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < elements; ++e)
        av[(l / 4 + 8 * (i % 2)) * depth + (l % 4 + 4 * (i / 2)) * elements + e] =
            static_cast<value>(value_of(type, a[l][i] >> bits * e));
  std::vector<value> bv(static_cast<size_t>(columns * depth));
  for (size_t i = 0; i < b_words.size(); ++i)
    for (int e = 0; e < elements; ++e)
      bv[i * static_cast<size_t>(elements) + static_cast<size_t>(e)] =
          static_cast<value>(value_of(type, b_words[i] >> bits * e));
  std::vector<Sum> c(static_cast<size_t>(16 * columns));
  const auto each = [&](const auto& body) {
    for (int l = 0; l < 32; ++l)
      for (int r = 0; r < columns / 2; ++r) {
        const int row = l / 4 + 8 * (r / 2 % 2), column = r / 4 * 8 + l % 4 * 2 + r % 2;
        body(c[static_cast<size_t>(row * columns + column)], sums[static_cast<size_t>(l * (columns / 2) + r)]);
      }
  };
  each([](Sum& to, uint32_t from) { to = std::bit_cast<Sum>(from); });
  if constexpr (std::is_same_v<Sum, float>)
    multiply_rows(c.data(), av, bv.data(), 16, columns, depth,
                  type == element::e4m3 && running->wanted().fp8 == fp8_sums::truncated);
  else
    multiply_rows(c.data(), av, bv.data(), 16, columns, depth);
  each([](Sum from, uint32_t& to) { to = std::bit_cast<uint32_t>(from); });
}

}  // namespace

void warpgroup_products::compute(size_t index, warp& waiter) {
  product& p = at(index);
  shared_memory& shared = waiter.owner->shared;
  std::vector<uint32_t> words(p.pieces.size() * 4);
  for (size_t i = 0; i < p.pieces.size(); ++i) {
    std::memcpy(&words[i * 4], shared.bytes(p.pieces[i]), 16);
    shared.end_read(waiter, p.pieces[i], 16);
  }
  for (int w = 0; w < 4; ++w) {
    if (!p.accumulate) {
      p.sums[w].assign(static_cast<size_t>(32 * p.columns / 2), 0u);
    } else {  // if empty: goes on from the product before on the same registers
      for (size_t i = index; p.sums[w].empty() && i-- > base;)
        if (at(i).d[w][0] == p.d[w][0]) p.sums[w] = at(i).sums[w];
    }
    if (p.type == element::s8)
      multiply_fragments<int32_t>(p.a[w], words, p.sums[w], p.columns, p.type);
    else
      multiply_fragments<float>(p.a[w], words, p.sums[w], p.columns, p.type);
  }
  p.done = true;
}

void warpgroup_products::retire(view& v, int w) {
  // The last product on each set of registers, unless one still in flight goes on with it.
  for (size_t i = v.retired; i < v.wanted; ++i) {
    product& p = at(i);
    join(v.owner->clock, p.clock);
    bool last = true;
    for (size_t j = i + 1; j < v.issued; ++j) last &= at(j).d[w][0] != p.d[w][0];
    if (!last) continue;
    const auto registers = static_cast<size_t>(p.columns / 2);
    for (size_t l = 0; l < 32; ++l) {
      for (size_t r = 0; r < registers; ++r)
        if (p.d[w][l][r] != poison) {
          self = &v.owner->lanes[l];
          error(p.where, "register %zu of the sums of the product issued here was touched before its wait", r);
        }
      std::memcpy(p.d[w][l], &p.sums[w][l * registers], registers * 4);
    }
  }
  v.retired = v.wanted;
}

void warpgroup_products::settle() {
  const size_t ready = complete();
  for (int w = 0; w < 4; ++w) {
    view& v = views[w];
    if (v.wanted <= v.retired || v.wanted > ready) continue;
    lane* const caller = self;
    for (size_t i = v.retired; i < v.wanted; ++i) {
      product& p = at(i);
      if (p.done) continue;
      self = &v.owner->lanes[0];
      join(v.owner->clock, p.clock);
      compute(i, *v.owner);
      join(p.clock, v.owner->clock);
    }
    retire(v, w);
    self = caller;
    v.owner->next_epoch();
    if (v.owner->blocked) {
      v.owner->blocked = false;
      v.owner->ready = v.owner->live;
    }
    running->made_progress();
  }
  size_t all = views[0].retired;
  for (const view& v : views) all = std::min(all, v.retired);
  // Sums that a later product goes on from stay with the last one on those registers.
  while (base < all && products.size() > 1) {
    const product& front = products.front();
    bool needed = false;
    for (size_t j = 1; j < products.size(); ++j)
      for (int w = 0; w < 4; ++w) {
        const product& later = products[j];
        needed |= !later.done && later.accumulate && (later.issued >> w & 1) && later.sums[w].empty() &&
                  later.d[w][0] == front.d[w][0];
      }
    if (needed) break;
    products.pop_front();
    ++base;
  }
}

// ---- what warps call -------------------------------------------------------------------------------------------

namespace {

struct request {
  uint32_t* d;
  const uint32_t* a;
  uint64_t descriptor;
  int columns;
  element type;
  bool accumulate;
  place where;
};

void issue(warp& w, request* const* lanes) {
  warpgroup_products& group = group_of(w);
  const int index = w.index % 4;
  auto& v = group.views[index];
  const request& mine = *lanes[0];
  for (int l = 1; l < 32; ++l)
    if (lanes[l]->descriptor != mine.descriptor || lanes[l]->accumulate != mine.accumulate)
      error(mine.where, "wgmma: lanes disagree about the descriptor or accumulate");
  if (!v.fenced)
    error(mine.where, "wgmma: wgmma_fence is missing between ordinary accesses to registers and this product");
  if (v.issued == group.base + group.products.size()) {
    auto& p = group.products.emplace_back();
    p.descriptor = mine.descriptor;
    p.columns = mine.columns;
    p.type = mine.type;
    p.accumulate = mine.accumulate;
    p.where = mine.where;
    p.pieces = pieces_of_b(mine.descriptor, mine.columns, mine.where);
  }
  auto& p = group.at(v.issued);
  if (p.descriptor != mine.descriptor || p.columns != mine.columns || p.type != mine.type ||
      p.accumulate != mine.accumulate)
    error(mine.where, "wgmma: the warps of the group disagree: another one issued %s", text_of(p.where).c_str());
  for (const uint32_t piece : p.pieces) {
    w.owner->shared.check_range(piece, 16, 16, "wgmma", mine.where);
    w.owner->shared.begin_read(*self, piece, 16, p.issued == 0, "wgmma", mine.where);
  }
  bool in_flight = false;
  for (size_t i = v.retired; i < v.issued; ++i) in_flight |= group.at(i).d[index][0] == mine.d;
  const auto registers = static_cast<size_t>(mine.columns / 2);
  if (!in_flight) p.sums[index].resize(32 * registers);
  for (size_t l = 0; l < 32; ++l) {
    std::memcpy(p.a[index][l], lanes[l]->a, 16);
    p.d[index][l] = lanes[l]->d;
    for (size_t r = 0; r < registers; ++r) {
      if (!in_flight)
        p.sums[index][l * registers + r] = lanes[l]->d[r];
      else if (lanes[l]->d[r] != poison)
        error(mine.where, "wgmma: register %zu of the sums was touched while a product was in flight", r);
      lanes[l]->d[r] = poison;
    }
  }
  p.issued |= 1u << index;
  const uint32_t epoch = w.epoch();
  w.next_epoch();
  join(p.clock, w.clock);
  p.clock[static_cast<size_t>(w.slot)] = {epoch, 0};
  ++v.issued;
  group.settle();
}

}  // namespace

void wgmma(void* d, const uint32_t (&a)[4], uint64_t descriptor, int columns, element type, bool accumulate,
           place where) {
  if (running->wanted().arch != 90) error(where, "wgmma is sm_90a's alone");
  if (running->request().threads % 128) error(where, "wgmma in a CTA of %d threads", running->request().threads);
  request mine{static_cast<uint32_t*>(d), a, descriptor, columns, type, accumulate, where};
  together<issue>("wgmma", mine, where);
}

void wgmma_fence(place where) {
  int unused = 0;
  running->collective([](warp& w, void* const*) { group_of(w).views[w.index % 4].fenced = true; }, &unused,
                      "wgmma_fence", where);
}

void wgmma_commit(place where) {
  int unused = 0;
  running->collective(
      [](warp& w, void* const*) {
        auto& v = group_of(w).views[w.index % 4];
        v.groups.push_back(v.issued);
        v.fenced = false;
      },
      &unused, "wgmma_commit", where);
}

void wgmma_wait(int pending, place where) {
  running->collective(
      [](warp& w, void* const* arguments) {
        warpgroup_products& group = group_of(w);
        auto& v = group.views[w.index % 4];
        const auto stay = static_cast<size_t>(*static_cast<const int*>(arguments[0]));
        while (v.groups.size() > stay) {
          v.wanted = v.groups.front();
          v.groups.pop_front();
        }
        v.fenced = false;
        if (v.wanted <= v.retired) return;
        w.blocked = true;
        group.settle();
      },
      &pending, "wgmma_wait", where);
}

bool has_products(const warp& w) {
  const auto index = static_cast<size_t>(w.index / 4);
  if (w.owner->products.size() <= index || !w.owner->products[index]) return false;
  const auto& v = w.owner->products[index]->views[w.index % 4];
  return v.retired < v.issued;
}

}  // namespace emulator
