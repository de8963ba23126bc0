"""What the model promises whatever its weights are: shapes, batching, caches, kernels, saving, identity insertion."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from pvchat.modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration, PVChatQFormerConfig, insert_routers
from pvchat.modeling_pvchat.modeling_qformer import PVChatQFormerModel, relu_gates, top_k_gates
from tests.tiny import NUM_FRAMES, pixels, prompt, randomised, tiny_config, tiny_model

VIDEO_ID = 3
SLOTS = 9  # per tile


@pytest.fixture(scope="module")
def plain():
    return tiny_model()


@pytest.fixture(scope="module")
def routed():
    return randomised(tiny_model(routing="remoh"))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# -- shapes and routing outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile_grid", [None, (2, 1), (1, 2)])
def test_outputs_have_the_documented_shapes(tile_grid):
    model = tiny_model(routing="remoh", tile_grid=tile_grid)
    tiles = model.config.num_tiles
    assert tiles == (1 if tile_grid is None else 3)
    assert model.config.num_video_tokens == SLOTS * tiles
    ids = prompt(2, tiles)
    outputs = model(input_ids=ids, pixel_values_videos=pixels(2, tiles), labels=ids)
    assert outputs.logits.shape == (*ids.shape, model.config.text_config.vocab_size)
    assert outputs.loss.shape == ()
    assert outputs.video_hidden_states.shape == (2, SLOTS * tiles, 32)
    # Layers 2 and 3 are routed; layer 2 has cross-attention too.
    assert [tuple(t.shape) for t in outputs.router_logits] == [(2 * tiles, SLOTS, 2)] * 3
    assert [tuple(t.shape) for t in outputs.alpha_logits] == [(2 * tiles, SLOTS, 2)] * 3
    assert model.model.encode_video(pixels(2, tiles)).shape == (2, tiles, 1 + NUM_FRAMES * 16, 32)


def test_a_plain_model_returns_no_routing(plain):
    outputs = plain(input_ids=prompt(), pixel_values_videos=pixels())
    assert outputs.router_logits == () and outputs.alpha_logits == ()


def test_text_alone_needs_no_video_and_returns_no_routing(routed):
    outputs = routed(input_ids=torch.tensor([[1, 7, 8]]))
    assert outputs.logits.shape[:2] == (1, 3)
    assert outputs.router_logits is None


def test_loss_is_the_mean_over_the_labelled_next_tokens(routed):
    ids = prompt(2)
    labels = ids.clone()
    labels[:, :-3] = -100
    outputs = routed(input_ids=ids, pixel_values_videos=pixels(2), labels=labels)
    expected = F.cross_entropy(outputs.logits[:, -4:-1].flatten(0, 1), ids[:, -3:].flatten())
    close(outputs.loss, expected)


def test_logits_to_keep_gives_the_last_logits_only(routed):
    ids = prompt()
    whole = routed(input_ids=ids, pixel_values_videos=pixels()).logits
    close(routed(input_ids=ids, pixel_values_videos=pixels(), logits_to_keep=2).logits, whole[:, -2:])


def test_the_subject_tokens_reach_the_answer(routed):
    ids = prompt()
    before = routed(input_ids=ids, pixel_values_videos=pixels()).logits
    saved = routed.model.subject_tokens.weight.detach().clone()
    with torch.no_grad():
        routed.model.subject_tokens.weight.add_(torch.linspace(0, 1, saved.numel()).view_as(saved))
        after = routed(input_ids=ids, pixel_values_videos=pixels()).logits
        routed.model.subject_tokens.weight.copy_(saved)
    assert (after - before)[:, -1].abs().max() > 1e-4


# -- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_of_two_equals_two_of_one(routed):
    ids, videos = prompt(2), pixels(2)
    together = routed(input_ids=ids, pixel_values_videos=videos)
    for row in range(2):
        alone = routed(input_ids=ids[row : row + 1], pixel_values_videos=videos[row : row + 1])
        close(together.logits[row : row + 1], alone.logits)
        for both, one in zip(together.router_logits, alone.router_logits, strict=True):
            close(both[row : row + 1], one)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_a_row(routed, side):
    ids, padding = prompt(), torch.zeros(1, 4, dtype=torch.long)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], dim=1)
    mask = torch.ones_like(padded)
    kept = slice(4, None) if side == "left" else slice(None, -4)
    mask[:, :4] = 0 if side == "left" else 1
    mask[:, -4:] = 0 if side == "right" else 1
    expected = routed(input_ids=ids, pixel_values_videos=pixels()).logits
    close(routed(input_ids=padded, attention_mask=mask, pixel_values_videos=pixels()).logits[:, kept], expected)


def test_videos_fill_the_placeholders_in_order_across_rows(routed):
    """A row with two videos beside a row with none."""
    videos = pixels(2)
    first = torch.cat([prompt(1, text=3, seed=1), prompt(1, text=3, seed=2)], dim=1)
    ids = torch.cat([first, torch.randint(5, 300, first.shape, generator=torch.Generator().manual_seed(3))])
    together = routed(input_ids=ids, pixel_values_videos=videos).logits
    swapped = routed(input_ids=ids, pixel_values_videos=videos.flip(0)).logits
    alone = routed(input_ids=ids[:1], pixel_values_videos=videos).logits
    close(together[:1], alone)
    assert (together[0] - swapped[0]).abs().max() > 1e-3
    close(together[1], swapped[1])


def test_a_prepared_four_dimensional_mask_keeps_packed_answers_apart(routed):
    """[prefix | A | B] with a block mask and restarted positions gives both answers' logits as if alone."""
    prefix = prompt(1, text=2)
    a, b = (torch.randint(5, 300, (1, n), generator=torch.Generator().manual_seed(n)) for n in (4, 5))
    packed = torch.cat([prefix, a, b], dim=1)
    p, n, m = prefix.shape[1], a.shape[1], b.shape[1]
    allowed = torch.ones(p + n + m, p + n + m, dtype=torch.bool).tril()
    allowed[p + n :, p : p + n] = False
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
    positions = torch.cat([torch.arange(p + n), torch.arange(p, p + m)])[None]
    logits = routed(input_ids=packed, pixel_values_videos=pixels(), attention_mask=mask, position_ids=positions).logits
    for answer, start in ((a, p), (b, p + n)):
        alone = routed(input_ids=torch.cat([prefix, answer], dim=1), pixel_values_videos=pixels()).logits
        close(logits[:, start : start + answer.shape[1]], alone[:, p:])


# -- wrong inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "videos"), [(SLOTS - 1, 1), (SLOTS + 1, 1), (2 * SLOTS, 1), (SLOTS, 2)])
def test_another_number_of_placeholders_than_video_tokens_is_an_error(plain, slots, videos):
    ids = torch.cat([torch.full((1, slots), VIDEO_ID), torch.tensor([[7, 8]])], dim=1)
    with pytest.raises(ValueError, match=f"{slots} <video> placeholders .* {SLOTS * videos} tokens"):
        plain(input_ids=ids, pixel_values_videos=pixels(videos))


def test_placeholders_without_any_video_are_an_error(plain):
    with pytest.raises(ValueError, match="placeholders"):
        plain(input_ids=prompt())


def test_ids_and_embeddings_together_or_neither_are_an_error(plain):
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        plain(input_ids=prompt(), inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        plain(pixel_values_videos=pixels())


def test_pixels_and_cached_states_together_are_an_error(plain):
    states = plain.model.encode_video(pixels())
    with pytest.raises(ValueError, match="one of the two"):
        plain.get_video_features(pixels(), states)
    features = {"video": plain.get_video_features(pixels())}
    with pytest.raises(ValueError, match="one of the two"):
        plain(input_ids=prompt(), pixel_values_videos=pixels(), mm_encoder_outputs=features)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"routing": "softmax"}, "none, moh, remoh"),
        ({"routing_init": "zeros"}, "identity, reference"),
        ({"num_shared_heads": 7}, "got 7 [+] 4"),
        ({"num_active_heads": 5}, "1 to num_routed_heads = 4"),
        ({"hidden_size": 700}, "multiple of num_attention_heads"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        PVChatQFormerConfig(**changed)


# -- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_cached_vision_states_of_any_layer_give_the_same_logits(routed, layers):
    ids, videos = prompt(2), pixels(2)
    states = routed.model.encode_video(videos, num_layers=layers)
    cached = routed(input_ids=ids, vision_hidden_states=states, vision_layers_done=layers).logits
    assert torch.equal(cached, routed(input_ids=ids, pixel_values_videos=videos).logits)


def test_cached_states_are_those_of_all_layers_unless_told_otherwise(routed):
    states = routed.model.encode_video(pixels())
    cached = routed(input_ids=prompt(), vision_hidden_states=states).logits
    assert torch.equal(cached, routed(input_ids=prompt(), pixel_values_videos=pixels()).logits)


@pytest.mark.parametrize("given", ["pixels", "cached states"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_and_without_key_value_cache_agree(routed, given, beams):
    video = {"pixel_values_videos": pixels(2)}
    if given == "cached states":
        video = {"vision_hidden_states": routed.model.encode_video(pixels(2))}
    ids = prompt(2)
    texts = [
        routed.generate(
            input_ids=ids, **video, max_new_tokens=6, do_sample=False, num_beams=beams, use_cache=use_cache
        )
        for use_cache in (True, False)
    ]
    assert texts[0].shape[1] > ids.shape[1]
    assert torch.equal(*texts)


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_with_two_videos_one_and_none_generate_as_if_alone(routed, beams):
    """Beams repeat rows: each repeat must get the whole group of its row's videos, in order."""
    videos = pixels(3)
    two = torch.cat([prompt(1, text=3, seed=1), prompt(1, text=3, seed=2)], dim=1)
    one, none = prompt(1, text=16, seed=3), prompt(1, text=25, seed=4)[:, SLOTS + 1 :]
    none = torch.cat([none, torch.randint(5, 300, (1, 1), generator=torch.Generator().manual_seed(5))], dim=1)
    rows = [(two, videos[:2]), (one, videos[2:]), (none, None)]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None, "pad_token_id": 0}
    together = routed.generate(input_ids=torch.cat([ids for ids, _ in rows]), pixel_values_videos=videos, **options)
    for row, (ids, given) in enumerate(rows):
        video = {} if given is None else {"pixel_values_videos": given}
        assert torch.equal(together[row : row + 1], routed.generate(input_ids=ids, **video, **options)), row


def test_beams_share_one_pass_of_the_encoder(routed):
    batches = []
    hook = routed.model.vision_tower.layers[0].register_forward_hook(
        lambda module, args, output: batches.append(len(output))
    )
    routed.generate(input_ids=prompt(), pixel_values_videos=pixels(), max_new_tokens=3, num_beams=4)
    hook.remove()
    assert batches == [1]


def test_a_second_question_continues_the_cache_of_the_first(routed):
    """The video is read once; later turns are text only."""
    first, second = prompt(), torch.tensor([[11, 12, 13]])
    outputs = routed(input_ids=first, pixel_values_videos=pixels(), use_cache=True)
    later = routed(
        input_ids=second, pixel_values_videos=pixels(), past_key_values=outputs.past_key_values, use_cache=True
    )
    whole = routed(input_ids=torch.cat([first, second], dim=1), pixel_values_videos=pixels())
    close(later.logits, whole.logits[:, -3:])


# -- kernels, precision, gradients ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_attention_implementations_agree(implementation):
    model = randomised(tiny_model(routing="remoh"))
    ids, videos = prompt(2), pixels(2)
    logits = {}
    for name in ("eager", implementation):
        model.set_attn_implementation(name)
        assert model.model.qformer.config._attn_implementation == name
        assert model.model.vision_tower.config._attn_implementation == name
        # Compiling flex attention for a CPU takes a minute; its uncompiled form is the same function.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits[name] = model(input_ids=ids, pixel_values_videos=videos).logits
    close(logits[implementation], logits["eager"])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_masked_encoder_tokens_do_not_matter(implementation):
    qformer = randomised(PVChatQFormerModel(tiny_config(routing="remoh").qformer_config)).eval()
    qformer.set_attn_implementation(implementation)
    qformer.requires_grad_(False)  # flex attention has no backward pass on a CPU
    queries, states = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[:, 5:] = 0
    with torch.compiler.set_stance("force_eager"):
        masked = qformer(queries, states, encoder_attention_mask=mask).last_hidden_state
    close(masked, qformer(queries, states[:, :5]).last_hidden_state)


def test_bfloat16_runs_forward_backward_and_generation():
    model = tiny_model(routing="remoh").to(torch.bfloat16)
    ids = prompt()
    outputs = model(input_ids=ids, pixel_values_videos=pixels(), labels=ids)  # float32 pixels, as the processor gives
    outputs.loss.backward()
    assert outputs.logits.dtype == torch.bfloat16 and torch.isfinite(outputs.logits).all()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}
    assert model.generate(input_ids=ids, pixel_values_videos=pixels(), max_new_tokens=3).shape[1] > ids.shape[1]
    exact = tiny_model(routing="remoh")(input_ids=ids, pixel_values_videos=pixels()).logits
    assert (outputs.logits.float() - exact).abs().max() < 0.05 * exact.abs().max() + 0.02


def without_dropout(**config):
    config = tiny_config(**config)
    config.qformer_config.hidden_dropout_prob = config.qformer_config.attention_probs_dropout_prob = 0.0
    return config


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    """Of the routers too: they are outputs of the checkpointed layers beside the hidden states."""
    ids, videos = prompt(2), pixels(2)
    found = []
    for checkpointing in (False, True):
        model = randomised(PVChatForConditionalGeneration(without_dropout(routing="remoh"))).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert sum(getattr(module, "gradient_checkpointing", False) for module in model.modules()) >= 3 + 4 + 2
        outputs = model(input_ids=ids, pixel_values_videos=videos, labels=ids)
        (outputs.loss + sum(logits.square().mean() for logits in outputs.router_logits)).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert (gradient is None) == (found[1][name] is None), name
        if gradient is not None:
            close(found[1][name], gradient, 1e-6)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # true of the frozen blocks
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_blocks_behind_frozen_ones_get_gradients_under_checkpointing(use_reentrant):
    """In the authors' code they get none: reentrant checkpointing gives nothing to a layer whose input is frozen."""
    ids, videos = prompt(), pixels()
    found = []
    for checkpointing in (False, True):
        model = randomised(PVChatForConditionalGeneration(without_dropout(routing="remoh"))).train()
        model.requires_grad_(False)
        trained = (*model.model.vision_tower.layers[1:], model.model.qformer.encoder.layer[2])
        for layer in trained:
            layer.requires_grad_(True)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(input_ids=ids, pixel_values_videos=videos, labels=ids).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found[0].values())
    for name, gradient in found[0].items():
        close(found[1][name], gradient, 1e-6)


def test_every_parameter_but_the_image_table_gets_a_gradient(routed):
    routed.zero_grad()
    routed(input_ids=prompt(), pixel_values_videos=pixels(), labels=prompt()).loss.backward()
    without = {name for name, p in routed.named_parameters() if p.grad is None}
    routed.zero_grad()
    assert without == {"model.vision_tower.embeddings.image_position_embedding"}


# -- routers ----------------------------------------------------------------------------------------------------------


def test_fresh_routers_are_the_identity():
    """Not by luck: what transformers initialises must really be the declared start."""
    outputs = tiny_model(routing="remoh")(input_ids=prompt(), pixel_values_videos=pixels())
    assert all((logits == 1).all() for logits in outputs.router_logits)
    assert all((logits == 0).all() for logits in outputs.alpha_logits)


@pytest.mark.parametrize("start_layer", [0, 2, 3])
def test_inserting_remoh_routers_changes_no_output(start_layer):
    model = randomised(tiny_model())
    ids, videos = prompt(2), pixels(2)
    before = model(input_ids=ids, pixel_values_videos=videos).logits
    heads = {"num_shared_heads": 3, "num_routed_heads": 1}
    insert_routers(model.model.qformer, "remoh", routing_start_layer=start_layer, **heads)
    outputs = model(input_ids=ids, pixel_values_videos=videos)
    assert len(outputs.router_logits) == {0: 6, 2: 3, 3: 1}[start_layer]
    assert all((relu_gates(logits) == 1).all() for logits in outputs.router_logits)
    close(outputs.logits, before, 1e-6)


def test_inserted_routers_are_in_the_config_and_survive_saving(tmp_path):
    model = randomised(tiny_model())
    insert_routers(model.model.qformer, "remoh", routing_start_layer=3)
    assert model.config.qformer_config.routing == "remoh"
    assert model.config.qformer_config.routing_start_layer == 3
    model.save_pretrained(tmp_path)
    loaded = PVChatForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()


def test_inserted_routers_can_learn():
    model = randomised(tiny_model())
    insert_routers(model.model.qformer)
    model(input_ids=prompt(), pixel_values_videos=pixels(), labels=prompt()).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if ".head_router." in name}
    assert len(gradients) == 9 and all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_moh_insertion_silences_heads_and_says_so_in_the_gates():
    model = randomised(tiny_model())
    before = model(input_ids=prompt(), pixel_values_videos=pixels()).logits
    insert_routers(model.model.qformer, "moh")
    outputs = model(input_ids=prompt(), pixel_values_videos=pixels())
    assert (outputs.logits - before).abs().max() > 1e-4
    gates = top_k_gates(outputs.router_logits[0], 1)
    assert ((gates > 0).sum(-1) == 1).all()


def test_routers_are_inserted_once(routed):
    with pytest.raises(ValueError, match="already"):
        insert_routers(routed.model.qformer)


def test_a_refused_insertion_leaves_the_model_as_it_was():
    model = tiny_model()
    with pytest.raises(ValueError, match="must equal"):
        insert_routers(model.model.qformer, num_shared_heads=4, num_routed_heads=4)
    assert model.config.qformer_config.routing == "none"


def test_silent_routed_heads_contribute_nothing():
    """With all gates at zero the value weights of the routed heads do not matter; those of the shared ones do."""
    qformer = randomised(PVChatQFormerModel(tiny_config(routing="remoh").qformer_config)).eval()
    queries, states = torch.randn(1, 4, 32), torch.randn(1, 6, 32)
    attention = qformer.encoder.layer[3].attention.attention
    with torch.no_grad():
        attention.head_router.router.weight.zero_()
        attention.head_router.router.bias.fill_(-1.0)
        before = qformer(queries, states).last_hidden_state
        attention.value.weight[16:] += 1.0
        assert torch.equal(qformer(queries, states).last_hidden_state, before)
        attention.value.weight[:16] += 1.0
        assert not torch.allclose(qformer(queries, states).last_hidden_state, before)


# -- saving, loading, initialisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("routing", "tie"), itertools.product(["none", "remoh", "moh"], [False, True]))
def test_saving_and_loading_gives_the_same_bits(tmp_path, routing, tie):
    model = tiny_model(routing=routing, tie=tie)
    model.save_pretrained(tmp_path)
    loaded, report = PVChatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    ids = prompt()
    ours, theirs = (m(input_ids=ids, pixel_values_videos=pixels()).logits for m in (model, loaded))
    assert torch.equal(ours, theirs)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    first, again, other = (tiny_model(seed, routing="remoh").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    same = {name for name in first if torch.equal(first[name], other[name])}
    assert all("norm" in n.lower() or "bias" in n or "position" in n or "scale" in n or "router" in n for n in same)


@pytest.mark.parametrize("routing_init", ["identity", "reference"])
def test_weights_that_a_checkpoint_lacks_start_as_declared_not_as_memory(tmp_path, routing_init):
    """The authors' routers start from uninitialised memory when a plain checkpoint is loaded."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = PVChatConfig.from_pretrained(tmp_path)
    config.qformer_config.routing, config.qformer_config.routing_init = "remoh", routing_init
    config.num_subject_tokens = 7
    loads = []
    for _ in range(2):
        torch.manual_seed(5)
        loaded = PVChatForConditionalGeneration.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
        loads.append({n: t.clone() for n, t in loaded.state_dict().items()})
    routers = {name: tensor for name, tensor in loads[0].items() if ".head_router." in name}
    assert len(routers) == 9
    for name, tensor in (routers | {"model.subject_tokens.weight": loads[0]["model.subject_tokens.weight"]}).items():
        assert torch.equal(tensor, loads[1][name])
        if "subject" in name or (routing_init == "reference" and "bias" not in name):
            assert 0.5 < float(tensor.std()) / 0.02 < 1.5, name
        else:
            expected = 1.0 if routing_init == "identity" and name.endswith("router.bias") else 0.0
            assert (tensor == expected).all(), name


def test_a_checkpoint_without_position_tables_gets_the_sine_cosine_ones(tmp_path):
    model = tiny_model()
    expected = {name: t for name, t in model.state_dict().items() if "position_embedding" in name}
    kept = {name: t for name, t in model.state_dict().items() if name not in expected}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = PVChatForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert len(expected) == 2 and all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert all(tensor.abs().max() > 0.9 for tensor in expected.values())


def test_the_default_config_is_mistral_with_rows_for_both_placeholders():
    config = PVChatConfig()
    text = config.text_config
    assert (text.vocab_size, text.rms_norm_eps, text.sliding_window) == (32770, 1e-5, None)
    assert text.rope_parameters["rope_theta"] == 1e6
    assert {config.video_token_id, config.subject_token_id} == {32768, 32769}
    assert PVChatConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
