// Feed-forward layers with float32 weights on the matrix tiles of a processor, which multiply bfloat16 and add up in float32. Each number is taken as
// the sum of two in bfloat16, so that three products of theirs (high·high, high·low, low·high) stand for one, but for some 2^-16 of it.
// A few rows pass both layers before the next ones do: their hidden layer never leaves the cache. The products are oneDNN's, through PyTorch.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace {

using at::BFloat16;
constexpr int64_t ROWS = 256, COLUMNS = 64;  // of a block; COLUMNS as in feed_forward.py

// The nearest bfloat16, as the upper half of a float32.
inline uint32_t rounded(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
}

// A block of up to ROWS rows, in two halves.
struct Halves {
  int64_t width;
  std::vector<uint16_t> high, low;

  explicit Halves(int64_t width) : width(width), high(ROWS * width), low(ROWS * width) {}

  void take(const float* __restrict from, int64_t rows) {
    uint16_t *__restrict h = high.data(), *__restrict l = low.data();
#pragma omp simd
    for (int64_t i = 0; i < rows * width; ++i) {
      const uint32_t upper = rounded(from[i]);
      h[i] = upper >> 16;
      l[i] = rounded(from[i] - std::bit_cast<float>(upper)) >> 16;
    }
  }

  // out [rows, columns], whose rows are `stride` apart, (+)= these rows times one block of columns of packed weights.
  void multiply(int64_t rows, int64_t columns, const BFloat16* weight_high, const BFloat16* weight_low, float* out, int64_t stride, bool add) const {
    const auto *h = reinterpret_cast<const BFloat16*>(high.data()), *l = reinterpret_cast<const BFloat16*>(low.data());
    const auto product = [&](const BFloat16* x, const BFloat16* weight, bool more) {
      at::native::cpublas::brgemm(rows, columns, width, width, COLUMNS, stride, more, x, weight, out);
    };
    product(h, weight_high, add);
    product(h, weight_low, true);
    product(l, weight_high, true);
  }
};

// Both halves of a layer's weights, packed by feed_forward.py: [2, chunks, blocks, inputs / 2, COLUMNS, 2].
struct Weights {
  const BFloat16 *high, *low;
  int64_t chunks, blocks, inputs;

  explicit Weights(const at::Tensor& packed)
      : high(packed.const_data_ptr<BFloat16>()), low(high + packed.numel() / 2), chunks(packed.size(1)), blocks(packed.size(2)), inputs(2 * packed.size(3)) {}

  int64_t at(int64_t chunk, int64_t block) const { return (chunk * blocks + block) * inputs * COLUMNS; }
};

at::Tensor feed_forward(const at::Tensor& x_, const at::Tensor& packed1, const at::Tensor& bias1, const at::Tensor& packed2, const at::Tensor& bias2) {
  const at::Tensor x = x_.contiguous();
  const Weights first(packed1), second(packed2);
  const int64_t count = x.size(0), width = x.size(1), chunk = first.blocks * COLUMNS, outputs = bias2.size(0);
  TORCH_CHECK(x.scalar_type() == at::kFloat && width == first.inputs && chunk == second.inputs && first.chunks == second.chunks && bias1.size(0) == first.chunks * chunk,
              "rows [R, ", first.inputs, "] in float32 are wanted, with weights that were packed together; here are rows [R, ", width, "] in ", x.scalar_type());
  at::Tensor out = at::empty({count, outputs}, x.options());
  const float *from = x.const_data_ptr<float>(), *add1 = bias1.const_data_ptr<float>(), *add2 = bias2.const_data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, (count + ROWS - 1) / ROWS, 1, [&](int64_t begin, int64_t end) {
    Halves outer(width), inner(chunk);
    std::vector<float> hidden(ROWS * chunk);
    for (int64_t row = begin * ROWS; row < std::min(end * ROWS, count); row += ROWS) {
      const int64_t rows = std::min(ROWS, count - row);
      outer.take(from + row * width, rows);
      for (int64_t c = 0; c < first.chunks; ++c) {
        for (int64_t b = 0; b < first.blocks; ++b)
          outer.multiply(rows, COLUMNS, first.high + first.at(c, b), first.low + first.at(c, b), hidden.data() + b * COLUMNS, chunk, false);
        for (int64_t i = 0; i < rows * chunk; i += chunk)
#pragma omp simd
          for (int64_t j = 0; j < chunk; ++j) hidden[i + j] = std::max(hidden[i + j] + add1[c * chunk + j], 0.f);
        inner.take(hidden.data(), rows);
        for (int64_t b = 0; b < second.blocks; ++b)
          inner.multiply(rows, std::min(COLUMNS, outputs - b * COLUMNS), second.high + second.at(c, b), second.low + second.at(c, b),
                         to + row * outputs + b * COLUMNS, outputs, c > 0);
      }
      for (int64_t i = row * outputs; i < (row + rows) * outputs; i += outputs)
#pragma omp simd
        for (int64_t j = 0; j < outputs; ++j) to[i + j] += add2[j];
    }
    at::native::cpublas::brgemm_release();
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fsrvos, library) {
  library.def("feed_forward(Tensor x, Tensor packed1, Tensor bias1, Tensor packed2, Tensor bias2) -> Tensor");
}

TORCH_LIBRARY_IMPL(fsrvos, CPU, library) { library.impl("feed_forward", &feed_forward); }
