// What J and F of a frame are made of, counted on masks of one bit a pixel: rows of 64-bit words, column c in bit c % 64 of word c / 64. An outline grows to all that is within a radius of it
// row by row: sideways by shifts, further for the rows that are nearer, and only where a row has any outline.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512BW__
#include <immintrin.h>
#endif

namespace {

using Word = uint64_t;
using Rows = std::vector<Word>;

// 64 booleans, of a byte each, as bits.
inline Word bits_of(const uint8_t* from) {
#ifdef __AVX512BW__
  const __m512i bytes = _mm512_loadu_si512(from);
  return _mm512_test_epi8_mask(bytes, bytes);
#else
  Word word = 0;
  for (int i = 0; i < 8; ++i) {
    Word eight;
    std::memcpy(&eight, from + 8 * i, 8);
    word |= ((eight * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return word;
#endif
}

struct Frame {
  int64_t height, width, words;       // words of a row
  Word inner;                         // the columns of its last word without the last one
  Rows mask, outline, near;
  Rows grown, spare;                  // a row, and a word to either side

  Frame(int64_t height, int64_t width)
      : height(height), width(width), words((width + 63) / 64), inner(~Word(0) >> (words * 64 - width) >> 1),
        mask(height * words), outline(height * words), near(height * words), grown(words + 2), spare(words + 2) {}

  void take(const uint8_t* pixels) {
    uint8_t rest[64] = {};
    for (int64_t row = 0; row < height; ++row, pixels += width) {
      Word* to = &mask[row * words];
      for (int64_t w = 0; w < width / 64; ++w) to[w] = bits_of(pixels + 64 * w);
      if (width % 64) {
        std::memcpy(rest, pixels + width / 64 * 64, width % 64);
        to[words - 1] = bits_of(rest);
      }
    }
  }

  // Pixels that differ from the one to the right, below, or below to the right (`seg2bmap`). In the last column only the one below counts, in the last row only the one to the right.
  void draw() {
    const Word* here = mask.data();
    Word* to = outline.data();
    for (int64_t row = 1; row < height; ++row, here += words, to += words) {
      const Word* below = here + words;
      for (int64_t w = 0; w < words - 1; ++w) to[w] = here[w] ^ (here[w] >> 1 | here[w + 1] << 63) | here[w] ^ (below[w] >> 1 | below[w + 1] << 63) | here[w] ^ below[w];
      const int64_t w = words - 1;
      to[w] = (here[w] ^ here[w] >> 1 | here[w] ^ below[w] >> 1) & inner | here[w] ^ below[w];
    }
    for (int64_t w = 0; w < words - 1; ++w) to[w] = here[w] ^ (here[w] >> 1 | here[w + 1] << 63);
    to[words - 1] = (here[words - 1] ^ here[words - 1] >> 1) & inner;
  }

  // near: within the disk whose row at distance d reaches halves[d] to both sides of an outline pixel; halves fall.
  void grow(c10::ArrayRef<int64_t> halves) {
    std::fill(near.begin(), near.end(), 0);
    const int64_t margin = halves[0] / 64 + 1;
    for (int64_t row = 0; row < height; ++row) {
      const Word* from = &outline[row * words];
      int64_t first = 0, end = words;
      while (first < end && !from[first]) ++first;
      while (end > first && !from[end - 1]) --end;
      if (first == end) continue;
      first = std::max<int64_t>(first - margin, 0), end = std::min(end + margin, words);
      const int64_t count = end - first;
      for (Rows* buffer : {&grown, &spare}) (*buffer)[0] = (*buffer)[count + 1] = 0;  // nothing comes in from the sides
      std::copy(from + first, from + end, grown.begin() + 1);
      int64_t half = 0;
      for (int64_t d = static_cast<int64_t>(halves.size()) - 1; d >= 0; --d) {
        while (half < halves[d]) {
          const int64_t step = std::min({half + 1, halves[d] - half, int64_t(63)});  // at the edge of the frame a run has but one side
          widen(count, step);
          half += step;
        }
        if (row - d >= 0) add(row - d, first, count);
        if (row + d < height) add(row + d, first, count);
      }
    }
  }

  // Each pixel of `grown` `step` (1 to 63) further to both sides.
  void widen(int64_t count, int64_t step) {
    const Word* __restrict from = grown.data() + 1;
    Word* __restrict to = spare.data() + 1;
    for (int64_t w = 0; w < count; ++w) to[w] = from[w] | from[w] << step | from[w - 1] >> (64 - step) | from[w] >> step | from[w + 1] << (64 - step);
    grown.swap(spare);
  }

  void add(int64_t row, int64_t first, int64_t count) {
    const Word* __restrict from = grown.data() + 1;
    Word* __restrict to = near.data() + row * words + first;
    for (int64_t w = 0; w < count; ++w) to[w] |= from[w];
  }
};

int64_t count(const Rows& rows) {
  int64_t sum = 0;
  for (const Word word : rows) sum += std::popcount(word);
  return sum;
}

int64_t shared(const Rows& a, const Rows& b) {
  int64_t sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::popcount(a[i] & b[i]);
  return sum;
}

// Masks bool [T, H, W] -> int64 [T, 6]: pixels of both (a shared one counts twice), shared pixels; outline pixels of prediction and truth; those near the other's outline.
at::Tensor contour_counts(const at::Tensor& prediction, const at::Tensor& truth, c10::ArrayRef<int64_t> halves) {
  TORCH_CHECK(prediction.dim() == 3 && prediction.sizes() == truth.sizes() && prediction.scalar_type() == at::kBool && truth.scalar_type() == at::kBool, "two masks bool [T, H, W] of one shape");
  TORCH_CHECK(!halves.empty() && std::is_sorted(halves.rbegin(), halves.rend()) && halves.back() >= 0, "halves fall from the middle row outwards");
  const at::Tensor p = prediction.contiguous(), g = truth.contiguous(), out = at::zeros({p.size(0), 6}, at::kLong);
  const int64_t height = p.size(1), width = p.size(2);
  if (!p.numel()) return out;
  const auto *of_p = static_cast<const uint8_t*>(p.const_data_ptr()), *of_g = static_cast<const uint8_t*>(g.const_data_ptr());
  int64_t* to = out.mutable_data_ptr<int64_t>();
  at::parallel_for(0, p.size(0), 1, [&](int64_t begin, int64_t end) {
    Frame a(height, width), b(height, width);
    for (int64_t t = begin; t < end; ++t) {
      a.take(of_p + t * height * width), b.take(of_g + t * height * width);
      for (Frame* frame : {&a, &b}) frame->draw();
      int64_t* row = to + 6 * t;
      row[0] = count(a.mask) + count(b.mask), row[1] = shared(a.mask, b.mask);
      row[2] = count(a.outline), row[3] = count(b.outline);
      if (!row[2] || !row[3]) continue;
      for (Frame* frame : {&a, &b}) frame->grow(halves);
      row[4] = shared(a.outline, b.near), row[5] = shared(b.outline, a.near);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fsrvos, library) { library.def("contour_counts(Tensor prediction, Tensor truth, int[] halves) -> Tensor"); }

TORCH_LIBRARY_IMPL(fsrvos, CPU, library) { library.impl("contour_counts", &contour_counts); }
