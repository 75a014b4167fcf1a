"Inputs of deformable sampling, for the tests of its kernels."
import torch

SHAPES = [[(4, 6)], [(5, 7), (3, 2)], [(8, 12), (4, 6), (2, 3)], [(7, 5), (4, 3), (2, 2), (1, 1)]]


def inputs(shapes, channels, batch=2, queries=5, points=3, dtype=torch.float64, device="cpu"):
    "Values, locations inside, outside and on the border of the levels, and weights."
    torch.manual_seed(0)
    pixels, heads, levels = sum(h * w for h, w in shapes), 2, len(shapes)
    value = torch.randn(batch, pixels, heads, channels, dtype=torch.float64)
    locations = torch.rand(batch, queries, heads, levels, points, 2, dtype=torch.float64) * 1.6 - .3
    weights = torch.rand(batch, queries, heads, levels, points, dtype=torch.float64)
    return [x.to(device, dtype).requires_grad_() for x in (value, locations, weights)]


def eighths(channels=8, dtype=torch.float64, device="cpu"):
    """One level of 4x8 pixels sampled where it is exact to say where: at every 16th from half a pixel outside to half a pixel outside, which are all pixels' centres and
    edges, the border, and as far out as a sample can still touch a pixel; once far away, once not a number. -> shapes, value, locations, weights."""
    shapes, places = [(4, 8)], torch.arange(-2., 19) / 16
    places = torch.cat((torch.cartesian_prod(places, places), torch.tensor([[-9., 40.], [1e30, -1e30]])))
    value = torch.linspace(-1, 1, 32 * 2 * channels, dtype=torch.float64).sin().view(1, 32, 2, channels)
    locations = places.double()[None, :, None, None, None].repeat(1, 1, 2, 1, 1, 1)
    tensors = (value, locations, torch.linspace(.5, 1, 2 * len(places), dtype=torch.float64).view(1, -1, 2, 1, 1))
    return shapes, *(x.to(device, dtype).requires_grad_() for x in tensors)


def with_gradients(sample, shapes, value, locations, weights):
    "The output and the gradients of values, locations and weights, for a direction that depends on the output's shape alone."
    out = sample(value, shapes, locations, weights)
    way = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return out, *torch.autograd.grad(out, (value, locations, weights), way)
