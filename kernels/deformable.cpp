// Multi-scale deformable sampling on the CPU, forward and backward: values in float64, float32 or bfloat16, all else and every sum in float64 or float32.
// One row of the output is one query of one head: its D channels lie side by side, so each corner is one vectorised multiply-add.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

struct Sizes {
  int64_t batch, pixels, heads, channels, queries, levels, points;
  std::vector<int64_t> height, width, start;  // of each level; start: its first pixel

  Sizes(const at::Tensor& value, const at::Tensor& shapes, const at::Tensor& locations)
      : batch(value.size(0)), pixels(value.size(1)), heads(value.size(2)), channels(value.size(3)),
        queries(locations.size(1)), levels(locations.size(3)), points(locations.size(4)) {
    const int64_t* shape = shapes.const_data_ptr<int64_t>();
    int64_t first = 0;
    for (int64_t l = 0; l < levels; ++l) {
      height.push_back(shape[2 * l]);
      width.push_back(shape[2 * l + 1]);
      start.push_back(first);
      first += shape[2 * l] * shape[2 * l + 1];
    }
    TORCH_CHECK(first == pixels, "the levels hold ", first, " pixels, value has ", pixels);
  }
};

// The four pixels around a location, the bilinear share of each, and where the location lies between them.
template <typename scalar>
struct Corners {
  int64_t pixel[4];  // index within all levels; -1 outside of the level
  scalar share[4], fx, fy;

  Corners(const Sizes& s, int64_t level, scalar x, scalar y) {
    const int64_t h = s.height[level], w = s.width[level];
    x = x * w - scalar(.5);
    y = y * h - scalar(.5);
    const bool near = x > -1 && y > -1 && x < w && y < h;  // false for NaN, too; at -1, where the derivative jumps, it is 0, as in the published CUDA operator
    const int64_t x0 = near ? int64_t(std::floor(x)) : 0, y0 = near ? int64_t(std::floor(y)) : 0;
    fx = near ? x - x0 : 0;
    fy = near ? y - y0 : 0;
    const scalar shares[4] = {(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy};
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t cx = x0 + (corner & 1), cy = y0 + (corner >> 1);
      const bool inside = near && cx >= 0 && cy >= 0 && cx < w && cy < h;
      pixel[corner] = inside ? s.start[level] + cy * w + cx : -1;
      share[corner] = shares[corner];
    }
  }
};

// bfloat16 is the upper half of a float32: so the compiler vectorises it.
inline float widened(at::BFloat16 x) { return std::bit_cast<float>(uint32_t(x.x) << 16); }
inline float widened(float x) { return x; }
inline double widened(double x) { return x; }

// `known`: the number of channels where it is known to the compiler, which then unrolls the loops; 0 otherwise.
template <int known, typename scalar, typename stored>
inline void add(scalar* __restrict to, const stored* __restrict from, scalar factor, int64_t n) {
  if (known) n = known;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += factor * widened(from[i]);
}

template <int known, typename scalar, typename stored>
inline scalar dot(const scalar* __restrict a, const stored* __restrict b, int64_t n) {
  if (known) n = known;
  scalar sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * widened(b[i]);
  return sum;
}

// Calls work(std::integral_constant<int, D>) for the widths of a head that are in use, with 0 for any other.
template <typename Work>
void with_channels(int64_t channels, const Work& work) {
  switch (channels) {
    case 8: return work(std::integral_constant<int, 8>());
    case 16: return work(std::integral_constant<int, 16>());
    case 24: return work(std::integral_constant<int, 24>());
    case 32: return work(std::integral_constant<int, 32>());
    default: return work(std::integral_constant<int, 0>());
  }
}

template <int known, typename scalar, typename stored>
void forward_rows(const Sizes& s, const stored* value, const scalar* locations, const scalar* weights, scalar* out, int64_t begin, int64_t end) {
  const int64_t samples = s.levels * s.points;
  for (int64_t row = begin; row < end; ++row) {  // row = (batch, query, head)
    const int64_t head = row % s.heads, batch = row / s.heads / s.queries;
    const stored* source = value + (batch * s.pixels * s.heads + head) * s.channels;
    scalar* sum = out + row * s.channels;
    for (int64_t i = 0; i < samples; ++i) {
      const scalar* xy = locations + (row * samples + i) * 2;
      const Corners<scalar> c(s, i / s.points, xy[0], xy[1]);
      const scalar weight = weights[row * samples + i];
      for (int corner = 0; corner < 4; ++corner)
        if (c.pixel[corner] >= 0) add<known>(sum, source + c.pixel[corner] * s.heads * s.channels, weight * c.share[corner], s.channels);
    }
  }
}

// All queries of one head of one clip: no other thread writes to its part of grad_value.
template <int known, typename scalar, typename stored>
void backward_head(const Sizes& s, const scalar* grad, const stored* value, const scalar* locations, const scalar* weights,
                   scalar* grad_value, scalar* grad_locations, scalar* grad_weights, int64_t batch, int64_t head) {
  const int64_t samples = s.levels * s.points, stride = s.heads * s.channels;
  const int64_t origin = (batch * s.pixels * s.heads + head) * s.channels;
  for (int64_t query = 0; query < s.queries; ++query) {
    const int64_t row = (batch * s.queries + query) * s.heads + head;
    const scalar* g = grad + row * s.channels;
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t sample = row * samples + i, level = i / s.points;
      const Corners<scalar> c(s, level, locations[2 * sample], locations[2 * sample + 1]);
      scalar along[4] = {0, 0, 0, 0};  // the gradient's component along each corner's pixel
      for (int corner = 0; corner < 4; ++corner) {
        if (c.pixel[corner] < 0) continue;
        const int64_t at = origin + c.pixel[corner] * stride;
        along[corner] = dot<known>(g, value + at, s.channels);
        add<known>(grad_value + at, g, weights[sample] * c.share[corner], s.channels);
      }
      scalar total = 0;
      for (int corner = 0; corner < 4; ++corner) total += c.share[corner] * along[corner];
      grad_weights[sample] = total;
      grad_locations[2 * sample] = weights[sample] * s.width[level] * ((1 - c.fy) * (along[1] - along[0]) + c.fy * (along[3] - along[2]));
      grad_locations[2 * sample + 1] = weights[sample] * s.height[level] * ((1 - c.fx) * (along[2] - along[0]) + c.fx * (along[3] - along[1]));
    }
  }
}

// Calls work(stored, scalar), a number of each type: what values are stored in, and what all else is in.
template <typename Work>
void with_types(const at::Tensor& value, const at::Tensor& locations, const at::Tensor& weights, const Work& work) {
  const auto exact = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(locations.scalar_type() == exact && weights.scalar_type() == exact, "locations and weights are to be in ", exact, " beside values in ", value.scalar_type());
  switch (value.scalar_type()) {
    case at::kDouble: return work(double(), double());
    case at::kFloat: return work(float(), float());
    case at::kBFloat16: return work(at::BFloat16(), float());
    default: TORCH_CHECK(false, "values are in float64, float32 or bfloat16, not in ", value.scalar_type());
  }
}

at::Tensor forward(const at::Tensor& value_, const at::Tensor& shapes_, const at::Tensor& locations_, const at::Tensor& weights_) {
  const at::Tensor value = value_.contiguous(), shapes = shapes_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
  const Sizes s(value, shapes, locations);
  at::Tensor out = at::zeros({s.batch, s.queries, s.heads * s.channels}, locations.options());
  with_types(value, locations, weights, [&](auto stored, auto exact) {
    using stored_t = decltype(stored);
    using scalar_t = decltype(exact);
    at::parallel_for(0, s.batch * s.queries * s.heads, 256, [&](int64_t begin, int64_t end) {
      with_channels(s.channels, [&](auto known) {
        forward_rows<known>(s, value.const_data_ptr<stored_t>(), locations.const_data_ptr<scalar_t>(), weights.const_data_ptr<scalar_t>(),
                            out.data_ptr<scalar_t>(), begin, end);
      });
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_, const at::Tensor& value_, const at::Tensor& shapes_,
                                                        const at::Tensor& locations_, const at::Tensor& weights_) {
  const at::Tensor value = value_.contiguous(), shapes = shapes_.contiguous(), locations = locations_.contiguous(), weights = weights_.contiguous();
  const at::Tensor grad = grad_.contiguous();
  const Sizes s(value, shapes, locations);
  at::Tensor grad_value = at::zeros_like(value, locations.options()), grad_locations = at::empty_like(locations), grad_weights = at::empty_like(weights);
  with_types(value, locations, weights, [&](auto stored, auto exact) {
    using stored_t = decltype(stored);
    using scalar_t = decltype(exact);
    at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
      with_channels(s.channels, [&](auto known) {
        for (int64_t i = begin; i < end; ++i)
          backward_head<known>(s, grad.const_data_ptr<scalar_t>(), value.const_data_ptr<stored_t>(), locations.const_data_ptr<scalar_t>(),
                               weights.const_data_ptr<scalar_t>(), grad_value.data_ptr<scalar_t>(), grad_locations.data_ptr<scalar_t>(),
                               grad_weights.data_ptr<scalar_t>(), i / s.heads, i % s.heads);
      });
    });
  });
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace

TORCH_LIBRARY(fsrvos, library) {
  library.def("sample_levels(Tensor value, Tensor shapes, Tensor locations, Tensor weights) -> Tensor");
  library.def("sample_levels_backward(Tensor grad, Tensor value, Tensor shapes, Tensor locations, Tensor weights) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fsrvos, CPU, library) {
  library.impl("sample_levels", &forward);
  library.impl("sample_levels_backward", &backward);
}
