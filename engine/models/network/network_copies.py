"""A model's network in the number formats that jobs use: a copy for each, or one at a time for a large model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional

from engine.contract import Dtype
from engine.models.family import TORCH_DTYPES
from engine.models.network.pipeline_offload import copy_without_offload, is_offloaded, offload_like
from engine.models.picture_conditions import Additions

Reload = Callable[[Dtype], Any]


class Networks(Protocol):
    """`dtypes`: the number formats worth timing."""

    dtypes: tuple[Dtype, ...]

    def has_format(self, dtype: Dtype) -> bool:
        """Whether the network is available in `dtype` without loading."""
        ...

    def get_network(self, dtype: Dtype) -> Any:
        """Return the network in this format, on the device."""
        ...


class NetworkCopies:
    """Copies of a float32 network, which stays. On a processor it is the float32 copy; bfloat16 gets substitutes."""

    def __init__(self, master: Any, device: torch.device) -> None:
        self._master = master
        self._device = device
        self.dtypes: tuple[Dtype, ...] = ("float32", _choose_half_format(device))
        self._networks: dict[Dtype, Any] = {}

    def has_format(self, dtype: Dtype) -> bool:
        return True

    def get_network(self, dtype: Dtype) -> Any:
        if dtype not in self._networks:
            is_master = dtype == "float32" and (self._device.type == "cpu" or is_offloaded(self._master))
            self._networks[dtype] = self._master if is_master else self._make_copy(dtype)
            if not is_offloaded(self._networks[dtype]):
                place_network(self._networks[dtype], self._device, dtype)
        return self._networks[dtype]

    def _make_copy(self, dtype: Dtype) -> Any:
        """Return a copy in this format, and for offloaded layers, offloaded."""
        net = copy.deepcopy(copy_without_offload(self._master))
        if self._device.type == "cpu" and dtype == "bfloat16":
            substitute_layers(net)
        if is_offloaded(self._master):
            torch.nn.Module.to(net, dtype=TORCH_DTYPES[dtype])
            offload_like(net.eval().requires_grad_(False), self._master)
        return net


class SingleNetwork:
    """A large model's network, in memory in one format at a time. For another format the model is loaded again.

    It calls `release` first, so that other holders release the current network. On a processor the weights stay in
    their mapped files: a forward in bfloat16 takes as long, and nothing is copied.
    """

    def __init__(
        self, net: Any, dtype: Dtype, device: torch.device, reload: Reload, release: Callable[[], None]
    ) -> None:
        self._device = device
        self._reload = reload
        self._release = release
        self._network = _move_network(net, device)
        self._dtype = dtype
        self.dtypes: tuple[Dtype, ...] = (dtype,)

    def has_format(self, dtype: Dtype) -> bool:
        return dtype == self._dtype and self._network is not None

    def get_network(self, dtype: Dtype) -> Any:
        if not self.has_format(dtype):
            self._release()
            self._network = None  # before loading: there is no room for two
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            with torch.inference_mode(False):
                net = self._reload(dtype)
            self._network = _move_network(net, self._device)
            self._dtype = dtype
        return self._network


def place_network(net: Any, device: torch.device, dtype: Dtype) -> Any:
    """Move the module itself to the device."""
    torch.nn.Module.to(net, device, TORCH_DTYPES[dtype])  # the subclass's `to` gives needless warnings
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def detach_from_file(module: Any) -> Any:
    """Copy the module's weights out of their mapped file, which is then released.

    Weights of a convolutional autoencoder become channels-last: it decodes faster, in less memory.
    """
    is_convolutional = isinstance(module, AutoencoderKL)
    for tensor in (*module.parameters(), *module.buffers()):
        memory_format = torch.channels_last if is_convolutional and tensor.dim() == 4 else torch.contiguous_format
        tensor.data = tensor.data.clone(memory_format=memory_format)
    return module


def replace_modules(pipeline: Any, source: Any) -> None:
    """Replace the pipeline's modules by those of another one."""
    for part, module in source.components.items():
        if isinstance(module, torch.nn.Module):
            setattr(pipeline, part, module)


def drop_modules(pipeline: Any) -> None:
    """Drop the pipeline's modules with weights."""
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            setattr(pipeline, part, None)


def _move_network(net: Any, device: torch.device) -> Any:
    net.eval().requires_grad_(False)
    if is_offloaded(net):
        return net
    torch.nn.Module.to(net, device)
    if device.type == "cuda":
        net.to(memory_format=torch.channels_last)
    return net


def _choose_half_format(device: torch.device) -> Dtype:
    """Return bfloat16 where the hardware supports it: float16 overflows in some networks."""
    return "float16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bfloat16"


MIN_BFLOAT16_KEYS = 64  # keys: from as many on, bfloat16 is faster
# Which taps of a 3-tap kernel add up in each tap of the 4-tap kernel that reads the picture before it was doubled.
_SUMMED_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def substitute_layers(net: nn.Module) -> None:
    """Replace layers in the network itself; its weights stay. Call it in float32: sums of weights are rounded once."""
    for each in list(net.modules()):
        if type(each) is nn.GroupNorm:
            each.__class__ = _GroupNorm
        elif type(each) is Upsample2D and (conv := _find_convolution(each)) is not None:
            each.add_module("transposed_conv", _transpose_convolution(conv))
            each.__class__ = _Upsample
        elif type(each) is Attention and _is_plain_attention(each):
            each.set_processor(_AttentionProcessor())  # pyright: ignore[reportArgumentType] # it takes any processor


def _is_plain_attention(module: Attention) -> bool:
    """Whether it only attends: no norms inside, no residual."""
    norms = module.spatial_norm, module.group_norm, module.norm_q, module.norm_k, module.norm_cross
    has_extras = any(norms) or module.residual_connection or module.rescale_output_factor != 1
    processor: Any = module.processor
    return type(processor) is AttnProcessor2_0 and not has_extras


def _find_convolution(module: Upsample2D) -> nn.Conv2d | None:
    """Return the 3×3 convolution of a layer that only doubles the sides and convolves; None for another layer."""
    conv = getattr(module, "conv", None)
    if type(conv) is not nn.Conv2d or not module.interpolate or module.norm is not None:
        return None
    shape = conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups, conv.padding_mode
    return conv if shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") else None


def _transpose_convolution(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return the transposed convolution that equals `conv` behind a nearest-neighbour doubling.

    Each pixel of the result reads 2×2 different pixels, not 3×3: 4/9 of the multiplications.
    """
    transposed = nn.ConvTranspose2d(
        conv.in_channels, conv.out_channels, 4, stride=2, padding=1, bias=conv.bias is not None
    )
    taps = torch.tensor(_SUMMED_TAPS)
    transposed.weight = nn.Parameter(torch.einsum("oiab,ka,lb->iokl", conv.weight.detach(), taps, taps))
    transposed.bias = conv.bias
    return transposed.requires_grad_(False)


class _Upsample(Upsample2D):
    """Doubles and convolves in one transposed convolution."""

    transposed_conv: nn.ConvTranspose2d

    def forward(self, hidden_states: torch.Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        if output_size is not None or type(self.conv) is not nn.Conv2d:  # another size, or a LoRA in the convolution
            return super().forward(hidden_states, output_size, *args, **kwargs)
        return self.transposed_conv(hidden_states)


class _GroupNorm(nn.GroupNorm):
    """Computes the same sums, on a channels-first copy."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        is_channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        normalized = super().forward(input.contiguous())
        return normalized.contiguous(memory_format=torch.channels_last) if is_channels_last else normalized


class _AttentionProcessor(AttnProcessor2_0):
    """Attends in float32 where the keys are few."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if attention_mask is not None or hidden_states.dim() != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projections = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        dtype = torch.float32 if context.shape[1] < MIN_BFLOAT16_KEYS else hidden_states.dtype
        q, k, v = (projection.unflatten(-1, (attn.heads, -1)).transpose(1, 2).to(dtype) for projection in projections)
        attended = functional.scaled_dot_product_attention(q, k, v).to(hidden_states.dtype)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def list_attention_layers(net: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer) of each layer of a U-Net that attends to the prompt, in the sequence of diffusers' loader."""
    for processor_name in net.attn_processors:
        name = processor_name.removesuffix(".processor")
        if name.endswith("attn2"):
            yield name, net.get_submodule(name)


ADDITION = "reference"  # names of such additional inputs begin with it


class ReferenceRows(NamedTuple):
    """Pictures of a forward's rows: keys and values of all layers `[n, tokens, width]`, and scales `[n]`.

    `rows`: their numbers; None: all rows.
    """

    keys_values: torch.Tensor
    scales: torch.Tensor
    rows: torch.Tensor | None = None


def find_references(additions: Additions) -> list[ReferenceRows]:
    """Return the reference pictures among the additional inputs of a forward."""
    return [ReferenceRows(*tensors) for name, tensors in additions.items() if name.startswith(ADDITION)]


@contextmanager
def attend_to_references(net: Any, references: Sequence[ReferenceRows]) -> Generator[None]:
    """Let the network attend to the references. Only one thread may run it meanwhile."""
    layers = [layer for _, layer in list_attention_layers(net)] if references else []
    processors = [layer.processor for layer in layers]
    start = 0
    try:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(_ReferenceAttention(processor, references, start, layer.inner_dim))
            start += 2 * layer.inner_dim
        yield
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(processor)


class _ReferenceAttention:
    """Attends to the prompt as `processor` does, and to references: their keys begin at `start`, then their values."""

    def __init__(self, processor: Any, references: Sequence[ReferenceRows], start: int, width: int) -> None:
        self._is_substitute = type(processor) is not AttnProcessor2_0
        self._references = references
        self._start = start
        self._width = width

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert attention_mask is None, "the prompts of these networks have no mask"
        query = attn.to_q(hidden_states)
        key = attn.to_k(encoder_hidden_states)
        value = attn.to_v(encoder_hidden_states)
        attended = _attend(attn.heads, query, key, value, in_float32=self._is_substitute)
        for keys_values, scales, rows in self._references:
            key, value = keys_values[..., self._start : self._start + 2 * self._width].chunk(2, dim=-1)
            queries = query if rows is None else query[rows]
            pictures = _attend(attn.heads, queries, key, value, in_float32=True) * scales.view(-1, 1, 1)
            attended = attended + pictures if rows is None else attended.index_add(0, rows, pictures)
        return attn.to_out[0](attended)


def _attend(
    heads: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, in_float32: bool
) -> torch.Tensor:
    """Return `[rows, queries, width]`; on a processor to few keys `in_float32`, which is faster and no less exact."""
    is_short = in_float32 and query.device.type == "cpu" and key.shape[1] < MIN_BFLOAT16_KEYS
    dtype = torch.float32 if is_short else query.dtype
    parts = [each.view(*each.shape[:2], heads, -1).transpose(1, 2).to(dtype) for each in (query, key, value)]
    q, k, v = parts
    return functional.scaled_dot_product_attention(q, k, v).to(query.dtype).transpose(1, 2).flatten(2)
