"""The engine: claims jobs from the queue and makes their pictures on one device. Never imports `bot` or `discord`."""

import logging

# diffusers imports torchao, which tells at every start what it lacks on a device without CUDA. These lines
# are here, since a training or a benchmark may import diffusers before `engine.models`.
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# bitsandbytes writes a line in every forward of every layer of LLM.int8().
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
