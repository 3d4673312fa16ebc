"""AUTOMATIC1111's names and fields, and what they become here."""

from __future__ import annotations

import base64
import json
from typing import Any, get_args

import msgspec
import pytest

from bot.apis.a1111 import names
from bot.apis.a1111.bodies import ImageToImageBody, OptionsBody, TextToImageBody
from bot.apis.a1111.generation import TargetSize, make_picture_options
from bot.apis.a1111.names import read_unit_pictures, read_units
from bot.apis.a1111.result_fields import DrawnImage, describe_images, parse_parameters
from bot.domain.errors import UserError
from bot.prompt import build_recipe, parse
from engine.contract import Sampler
from tools.painter import make_profile

ALL_SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
PROFILE = msgspec.structs.replace(make_profile(), samplers=ALL_SAMPLERS)


@pytest.mark.parametrize(
    ("name", "scheduler", "sampler"),
    [
        ("DPM++ 2M Karras", "", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M Karras", "karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Automatic", "dpmpp_2m"),
        ("Euler a", "automatic", "euler_ancestral"),
        ("Euler", "Uniform", "euler"),
        ("Euler", "normal", "euler"),
        ("k_euler", "", "euler"),
        ("DDIM", "", "ddim"),
        ("UniPC", "", "unipc"),
        ("LCM", "", "lcm"),
        ("DPM++ 2M SDE", "", "dpmpp_2m_sde"),
        ("Heun", "", "heun"),
        ("", "", None),
    ],
)
def test_sampler_and_scheduler_become_one_sampler(name: str, scheduler: str, sampler: Sampler | None) -> None:
    assert names.choose_sampler(name, scheduler, PROFILE) == sampler


@pytest.mark.parametrize(
    ("name", "scheduler", "sentence"),
    [
        ("PLMS", "", "There is no sampler “PLMS” here: DDPM, DDIM, Euler"),
        ("Euler", "Exponential", "There is no scheduler “Exponential” here: Automatic, Uniform and Karras are."),
        ("DDIM", "Karras", "DDIM has no Karras schedule here: Euler and DPM++ 2M have."),
        ("DPM++ 2M SDE Karras", "", "There is no sampler “DPM++ 2M SDE Karras” here"),
    ],
)
def test_a_name_without_a_counterpart_gets_a_sentence(name: str, scheduler: str, sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        names.choose_sampler(name, scheduler, PROFILE)
    assert raised.value.sentence.startswith(sentence)


def test_a_sampler_that_the_model_lacks_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(UserError) as raised:
        names.choose_sampler("Euler a", "", make_profile())
    assert raised.value.sentence == (
        "embedded does not take the sampler Euler a: it takes DDPM, DDIM, Euler and DPM++ 2M."
    )


def test_every_listed_sampler_can_be_asked_for() -> None:
    listed = names.list_samplers(PROFILE, [PROFILE])
    assert listed[0].name == "DDPM"
    assert len(listed) == len(ALL_SAMPLERS)
    for sampler in listed:
        assert names.choose_sampler(sampler.name, "", PROFILE) == sampler.aliases[0]


def test_models_are_found_by_title_file_and_hash() -> None:
    profiles = [PROFILE, msgspec.structs.replace(PROFILE, name="dreamer-8")]
    for name in ("dreamer-8", "Dreamer-8", "dreamer-8.safetensors", "dreamer-8.safetensors [abc123]"):
        assert names.find_model(name, profiles).name == "dreamer-8"
    with pytest.raises(UserError, match=r"There is no model “dreamer” here: embedded and dreamer-8 are\."):
        names.find_model("dreamer", profiles)


def test_upscalers_that_clients_name_become_ours() -> None:
    assert [names.choose_upscaler(name) for name in ("Lanczos", "Darkroom", "R-ESRGAN 4x+")] == [
        "lanczos",
        "gan",
        "gan",
    ]
    with pytest.raises(UserError, match=r"There is no upscaler “LDSR” here: Lanczos and Darkroom are\."):
        names.choose_upscaler("LDSR")
    with pytest.raises(UserError, match="Name an upscaler in upscaler_1"):
        names.choose_upscaler("None")


def _options(body: TextToImageBody, **more: Any) -> tuple[str, dict[str, Any]]:
    wanted = make_picture_options(body, PROFILE, drawn_seed=77, **more)
    return wanted.prompt, dict(wanted.options)


def test_fields_become_options() -> None:
    prompt, options = _options(
        TextToImageBody(
            prompt="a (red:1.2) fox {loose}",
            negative_prompt="fog",
            seed=5,
            steps=12,
            evaluations=8,
            cfg_scale=6.5,
            width=640,
            height=480,
            sampler_name="Euler",
            scheduler="Karras",
            batch_size=2,
            n_iter=2,
            tiling=True,
            override_settings=OptionsBody(sd_vae="soft", CLIP_stop_at_last_layers=2),
        )
    )
    assert prompt == r"a (red:1.2) fox \{loose\}"
    assert options == {
        "model": "embedded",
        "negative": "fog",
        "steps": 12,
        "evaluations": 8,
        "guidance": 6.5,
        "sampler": "euler_karras",
        "ar": (640, 480),
        "tile": True,
        "vae": "soft",
        "clip_skip": 2,
        "seed": 5,
        "count": 4,
    }


def test_what_is_left_out_or_null_stays_with_the_model() -> None:
    body = msgspec.json.decode('{"prompt": "a fox", "seed": null, "steps": null, "unknown": 1}', type=TextToImageBody)
    assert _options(body) == ("a fox", {"model": "embedded", "seed": 77, "count": 1})
    _, options = _options(ImageToImageBody(prompt="a fox"))
    assert options["strength"] == 0.75


def test_a_model_that_reads_no_negative_prompt_gets_none() -> None:
    profile = msgspec.structs.replace(PROFILE, guidance_kind="network")
    wanted = make_picture_options(TextToImageBody(prompt="a fox", negative_prompt="fog"), profile, drawn_seed=1)
    assert "negative" not in wanted.options


def test_more_than_a_jobs_pictures_are_several_jobs_whose_seeds_count_on() -> None:
    prompt, options = _options(TextToImageBody(prompt="a fox, {x}", seed=10, n_iter=3, batch_size=3))
    parsed = parse(prompt, PROFILE, options=options).prompts
    assert [(each.words, each.seed, each.count) for each in parsed] == [
        ("a fox, {x}", 10, 4),
        ("a fox, {x}", 14, 4),
        ("a fox, {x}", 18, 1),
    ]
    with pytest.raises(UserError, match=r"n_iter × batch_size is 50: one request draws at most 40 pictures\."):
        _options(TextToImageBody(n_iter=5, batch_size=10))


def test_emphasis_and_lora_tags_are_read_as_they_stand() -> None:
    prompt, options = _options(TextToImageBody(prompt="((fox)), [snow], <lora:ink:0.8>, (lamp:1.3)"))
    (parsed,) = parse(prompt, PROFILE, options=options).prompts
    assert parsed.words == "((fox)), [snow], (lamp:1.3)"
    assert parsed.loras is not None
    assert [(lora.name, lora.weight) for lora in parsed.loras] == [("ink", 0.8)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"enable_hr": True}, "enable_hr has no counterpart in Darkroom: enlarge the finished picture by"),
        ({"restore_faces": True}, "restore_faces has no counterpart"),
        ({"styles": ["oil"]}, "styles has no counterpart"),
        ({"subseed_strength": 0.3}, "subseed_strength has no counterpart"),
        ({"script_name": "x/y/z plot"}, "Script “x/y/z plot” not found"),
    ],
)
def test_what_would_change_the_picture_and_is_not_here_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        _options(TextToImageBody(prompt="a fox", **fields))
    assert raised.value.sentence.startswith(sentence)


def test_info_names_each_picture_with_its_seed_and_parameters() -> None:
    (parsed,) = parse("a fox", PROFILE, options={"steps": 9, "count": 2, "seed": 5, "negative": "fog"}).prompts
    recipe = build_recipe(parsed, PROFILE, 0)
    images = [DrawnImage(recipe, index, 256, 256, f"a fox {index}") for index in range(2)]
    info = describe_images(images, "a fox", batch_size=2, created=0.0)
    assert (info["seed"], info["all_seeds"], info["infotexts"]) == (5, [5, 6], ["a fox 0", "a fox 1"])
    assert (info["width"], info["sampler_name"], info["negative_prompt"]) == (256, "DDPM", "fog")
    assert info["job_timestamp"] == "19700101000000"
    json.dumps(info)


def test_parameters_are_read_by_name() -> None:
    text = (
        "a fox: red, big\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x48, "
        'ControlNet 0: "Module: canny, Weight: 1", Version: Darkroom'
    )
    parameters = parse_parameters(text)
    assert parameters["Prompt"] == "a fox: red, big"
    assert parameters["Negative prompt"] == "fog"
    assert parameters["Sampler"] == "Euler a"
    assert parameters["ControlNet 0"] == "Module: canny, Weight: 1"
    assert parse_parameters("a fox: red") == {"Prompt": "a fox: red", "Negative prompt": ""}
    assert parse_parameters("") == {}


def test_sizes_of_upscales() -> None:
    assert (TargetSize(2.5).find_factor(40, 20), TargetSize(2.5).find_size(40, 20)) == (2.5, (100, 50))
    cropped = TargetSize(2, (100, 100), crops=True)
    fitted = TargetSize(2, (100, 100))
    assert (cropped.find_factor(40, 20), cropped.find_size(40, 20)) == (5.0, (100, 100))
    assert (fitted.find_factor(40, 20), fitted.find_size(40, 20)) == (2.5, (100, 50))


def test_units_of_controlnet_become_control_and_reference_pictures() -> None:
    picture = base64.b64encode(b"edges").decode()
    units = read_units(
        {
            "ControlNet": {
                "args": [
                    {
                        "image": picture,
                        "module": "canny",
                        "model": "edges [d14c016b]",
                        "weight": 0.8,
                        "guidance_end": 0.6,
                    },
                    {"module": "depth_midas", "model": "depth", "resize_mode": "Just Resize"},
                    {"input_image": picture, "module": "ip-adapter_clip_sd15", "model": "face", "weight": 0.5},
                    {"enabled": False, "model": "None"},
                ]
            }
        }
    )
    unit_pictures = read_unit_pictures(units, b"init")
    assert unit_pictures.controls == ("edges:0.8:0-0.6:canny", "depth:1:0-1:depth")
    assert unit_pictures.control_pictures == (b"edges", b"init")
    assert (unit_pictures.references, unit_pictures.reference_pictures) == (("face:0.5",), (b"edges",))
    _, options = _options(TextToImageBody(prompt="a fox"), unit_pictures=unit_pictures)
    assert options["control"] == unit_pictures.controls


@pytest.mark.parametrize(
    ("scripts", "sentence"),
    [
        ({"ADetailer": {"args": [True]}}, "Script “ADetailer” not found: Darkroom runs no scripts but ControlNet."),
        (
            {"ControlNet": {"args": [{"module": "mlsd", "image": "aaaa"}]}},
            "There is no ControlNet module “mlsd” here: none,",
        ),
        ({"ControlNet": {"args": [{"module": "canny"}]}}, "A unit of ControlNet needs a picture (image)."),
        ({"ControlNet": {"args": "all"}}, "A unit of ControlNet can't be read:"),
        ({"ControlNet": {"args": [{"image": "aaaa"}] * 9}}, "ControlNet takes at most 7 units here, and these are 9."),
    ],
)
def test_units_that_cannot_be_followed_get_a_sentence(scripts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        read_unit_pictures(read_units(scripts), None)
    assert raised.value.sentence.startswith(sentence)


def test_the_body_of_sillytavern_is_understood() -> None:
    """As its image generation sends it (its server adds address and credentials to the body)."""
    sent = {
        "url": "http://localhost:8189",
        "auth": "",
        "prompt": "a fox",
        "negative_prompt": "lowres",
        "sampler_name": "Euler",
        "scheduler": "automatic",
        "steps": 20,
        "cfg_scale": 7,
        "width": 512,
        "height": 768,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    prompt, options = _options(msgspec.json.decode(json.dumps(sent), type=TextToImageBody))
    assert prompt == "a fox"
    assert options == {
        "model": "embedded",
        "negative": "lowres",
        "steps": 20,
        "guidance": 7,
        "sampler": "euler",
        "ar": (512, 768),
        "clip_skip": 1,
        "seed": 77,
        "count": 1,
    }
