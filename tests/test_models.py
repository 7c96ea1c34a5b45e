"""Backbone, LongMem and MemTRM, on a backbone of 4 layers x 32 with weights large enough to matter."""

import copy
import os

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from omegaconf import OmegaConf
from torch.testing import assert_close

from longmem_fairseq.criterions import LongMemCrossEntropyCriterion
from longmem_fairseq.models.backbone import BackboneDecoder, LongMemBackbone, LongMemBackboneConfig
from longmem_fairseq.models.checkpoints import dictionary_hash, fingerprint
from longmem_fairseq.models.longmem import LongMem, LongMemConfig
from longmem_fairseq.models.memtrm import MemTRM, MemTRMConfig
from longmem_fairseq.tasks import LongMemLanguageModelingTask
from longmem_fairseq.tasks.longmem_language_modeling import LongMemLanguageModelingConfig
from stream_scoring import use_memory

SEGMENT = 8
SIZES = {"embed_dim": 32, "num_layers": 4, "num_attention_heads": 4}
MEMORY = {"memory_size": 64, "chunk_size": 2, "k": 8, "retrieval_layer_index": 3}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    dictionary = Dictionary()
    for i in range(60):
        dictionary.add_symbol(f"w{i}", n=60 - i)
    dictionary.save(str(folder / "dict.txt"))
    cfg = LongMemLanguageModelingConfig(data=str(folder), tokens_per_sample=SEGMENT)
    return LongMemLanguageModelingTask(cfg)


def save_backbone(path, dictionary, seed, **options):
    """A checkpoint as fairseq-train writes it, of a backbone with random weights."""
    torch.manual_seed(seed)
    cfg = OmegaConf.structured(LongMemBackboneConfig(_name="longmem_backbone", **SIZES, **options))
    decoder = BackboneDecoder(cfg, dictionary)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    state = {
        "cfg": {"model": OmegaConf.to_container(cfg, enum_to_str=True)},
        "args": None,
        "model": {"decoder." + name: tensor for name, tensor in decoder.state_dict().items()},
        "optimizer_history": [
            {"optimizer_name": "FairseqAdam", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
        "task_state": {"dictionary_hash": dictionary_hash(dictionary)},
    }
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def backbone_path(tmp_path_factory, task):
    path = tmp_path_factory.mktemp("backbone") / "checkpoint.pt"
    return save_backbone(path, task.source_dictionary, seed=1, smeared_key_layers=[3])


@pytest.fixture(scope="module")
def backbone(backbone_path, task):
    """The checkpoint as a language model of its own."""
    state = torch.load(backbone_path)
    model = LongMemBackbone.build_model(OmegaConf.create(state["cfg"]["model"]), task)
    model.load_state_dict(state["model"])
    return model.eval()


@pytest.fixture
def build(task, backbone_path):
    """Builds a longmem or memtrm on the backbone, with options; in evaluation mode."""

    def build_model(config=LongMemConfig, perturb=False, path=backbone_path, **options):
        torch.manual_seed(2)
        options = {"pretrained_model_path": path, **MEMORY, **options}
        cls = LongMem if config is LongMemConfig else MemTRM
        cfg = OmegaConf.structured(config(**options))
        cls.settle_config(cfg, from_checkpoint=False)  # as the task does
        model = cls.build_model(cfg, task)
        if perturb:  # as if it had been trained
            torch.manual_seed(3)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad and "memory_bias" not in name:
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return build_model


def document(seed, num_tokens, rows=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 64, (rows, num_tokens), generator=generator)


@torch.no_grad()
def read(model, tokens, fresh=True):
    """Logits of all tokens, read segment by segment."""
    logits = []
    for start in range(0, tokens.size(1), SEGMENT):
        new_document = torch.full((len(tokens),), fresh and start == 0)
        logits.append(model(tokens[:, start : start + SEGMENT], new_document=new_document)[0])
    return torch.cat(logits, dim=1)


def differ(a, b):
    return (a - b).abs().max().item() > 1e-3


def test_backbone_by_hand(backbone):
    """Hidden states, the last norm, and the keys and values of the layer asked for."""
    decoder, tokens = backbone.decoder, document(1, 6)
    bias = decoder.attention_bias(6, torch.float32, tokens.device)
    states = [decoder.embed_tokens.weight[tokens]]
    for layer in decoder.layers:
        states.append(layer(states[-1], bias).x)
    encoded = decoder.encode(tokens, memory_layer=2)
    assert len(encoded.hidden_states) == 5
    for state, expected in zip(encoded.hidden_states, states, strict=True):
        assert torch.equal(state, expected)
    normed = decoder.layer_norm(states[-1])
    assert torch.equal(encoded.normed, normed)
    source = decoder.layers[2].layer_norm(states[2])
    for found, projection in (
        (encoded.keys, decoder.layers[2].self_attn.k_proj),
        (encoded.values, decoder.layers[2].self_attn.v_proj),
    ):
        expected = projection(source).view(1, 6, 4, 8).transpose(1, 2)
        assert_close(found, expected)
    head = decoder.output_projection
    expected = normed @ head.weight.t() + head.bias
    logits, extra = backbone(tokens)
    assert_close(logits, expected)
    assert extra == {}
    kept = decoder.encode(tokens, keep_every=2).hidden_states
    assert [state is not None for state in kept] == [True, False, True, False, True]
    assert decoder.encode(tokens).keys is None


def test_released_init_copies_the_backbones_layers(build):
    decoder = build().decoder
    for i, layer in enumerate(decoder.layers):
        source = decoder.backbone.layers[2 * i + 1].state_dict()
        copied = layer.state_dict()
        if i == 1:
            assert torch.equal(copied.pop("self_attn.memory_bias"), torch.zeros(4))
        assert list(copied) == list(source)
        assert all(torch.equal(copied[name], source[name]) for name in source)
        assert layer.layer_norm.eps == 1e-5
        assert layer.self_attn.smeared_keys == (i == 1)
    assert torch.equal(decoder.layer_norm.weight, decoder.backbone.layer_norm.weight)
    assert torch.equal(decoder.layer_norm.bias, decoder.backbone.layer_norm.bias)


@pytest.mark.parametrize("sidenet_init", ["released", "identity"])
def test_sidenet_by_hand(build, sidenet_init):
    """Cross-network residuals; in the released form the last one ends after the final norm."""
    decoder = build(no_memory=True, sidenet_init=sidenet_init, perturb=True).decoder
    tokens = document(1, 6)
    encoded = decoder.backbone.encode(tokens)
    h = encoded.hidden_states
    last = h[4] if sidenet_init == "identity" else encoded.normed
    bias = decoder.backbone.attention_bias(6, torch.float32, tokens.device)
    x = decoder.layers[0](h[0], bias).x + h[2] - h[0]
    x = decoder.layers[1](x, bias).x + last - h[2]
    expected = decoder.backbone.output_projection(decoder.layer_norm(x))
    assert_close(decoder(tokens)[0], expected, rtol=1e-5, atol=1e-5)


def test_identity_init_starts_at_the_backbone(build, backbone):
    """Also where memory is read."""
    model, tokens = build(sidenet_init="identity"), document(1, 3 * SEGMENT, rows=2)
    expected = torch.cat([backbone(part)[0] for part in tokens.split(SEGMENT, dim=1)], dim=1)
    assert_close(read(model, tokens), expected, rtol=0, atol=1e-5)
    assert model.decoder.memory.bank.num_tokens == [24, 24]


def test_a_closed_gate_is_the_sidenet_without_memory(build):
    tokens = document(1, 4 * SEGMENT, rows=2)
    model, without = build(perturb=True), build(perturb=True, no_memory=True)
    assert without.decoder.memory is None
    without.load_state_dict(model.state_dict())  # a trained gate is left aside
    expected = read(without, tokens)
    assert_close(read(model, tokens)[:, :SEGMENT], expected[:, :SEGMENT], rtol=0, atol=1e-6)
    assert differ(read(model, tokens)[:, SEGMENT:], expected[:, SEGMENT:])
    model.decoder.layers[1].self_attn.memory_bias.data.fill_(-1e4)
    assert_close(read(model, tokens), expected, rtol=0, atol=1e-6)


def models_with_a_past(build, backbone):
    past = document(5, 3 * SEGMENT)
    for model in (backbone, build(perturb=True), build(config=MemTRMConfig)):
        read(model, past)
        memory = getattr(model.decoder, "memory", None)
        yield model, memory


def test_changing_a_token_leaves_every_earlier_output_alone(build, backbone):
    tokens = document(6, SEGMENT)
    for model, memory in models_with_a_past(build, backbone):
        for t in range(SEGMENT):
            changed = tokens.clone()
            changed[0, t] = 4 + (tokens[0, t] - 3) % 60
            outputs = []
            for segment in (tokens, changed):
                if memory is None:
                    outputs.append(read(model, segment, fresh=False))
                else:
                    with memory.frozen():
                        outputs.append(read(model, segment, fresh=False))
                    assert memory.bank.num_tokens == [24]
            before, after = outputs
            assert torch.equal(before[:, :t], after[:, :t])
            assert differ(before[:, t], after[:, t])


def test_memory_reaches_the_outputs_of_later_segments(build, backbone):
    """A token far before the window changes what the models with memory say, not the backbone."""
    tokens = document(6, 4 * SEGMENT)
    changed = tokens.clone()
    changed[0, :SEGMENT] = document(7, SEGMENT)
    for model in (build(perturb=True), build(config=MemTRMConfig)):
        assert differ(read(model, tokens)[:, 16:], read(model, changed)[:, 16:])
    assert torch.equal(read(backbone, tokens)[:, 16:], read(backbone, changed)[:, 16:])


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_reset_isolates_documents(build, config):
    first, second = document(1, 3 * SEGMENT - 3), document(2, 3 * SEGMENT)
    fresh = read(build(config), second)
    model = build(config)
    read(model, first)
    assert torch.equal(read(model, second), fresh)
    read(model, first)
    assert differ(read(model, second, fresh=False), fresh)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_rows_reset_on_their_own(build, config):
    """Row 1 starts another document while row 0 goes on."""
    long, short = document(1, 4 * SEGMENT), document(2, 2 * SEGMENT)
    expected = read(build(config), long), read(build(config), short)
    model, outputs = build(config), []
    for step in range(4):
        part = slice(step * SEGMENT, (step + 1) * SEGMENT)
        again = slice(step % 2 * SEGMENT, (step % 2 + 1) * SEGMENT)
        rows = torch.cat([long[:, part], short[:, again]])
        with torch.no_grad():
            flags = torch.tensor([step == 0, step % 2 == 0])
            outputs.append(model(rows, new_document=flags)[0])
    outputs = torch.cat(outputs, dim=1)
    assert_close(outputs[:1], expected[0], rtol=0, atol=1e-4)
    assert_close(outputs[1:, : 2 * SEGMENT], expected[1], rtol=0, atol=1e-4)
    assert_close(outputs[1:, 2 * SEGMENT :], expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
@pytest.mark.parametrize("memory_size", [64, 16])
def test_one_stream_and_three_streams_agree(build, config, memory_size):
    tokens = document(1, 5 * SEGMENT - 2, rows=3)
    together = read(build(config, memory_size=memory_size), tokens)
    for row in range(3):
        alone = read(build(config, memory_size=memory_size), tokens[row : row + 1])
        assert_close(together[row : row + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_padding_changes_nothing(build, config):
    """Neither right of a last segment nor in a row that has run out."""
    tokens, pad = document(1, 3 * SEGMENT - 3), 1
    padded = torch.full((2, 3 * SEGMENT), pad)
    padded[0, : tokens.size(1)] = tokens
    padded[1, : SEGMENT + 1] = document(2, SEGMENT + 1)
    model = build(config)
    output = read(model, padded)
    assert_close(output[:1, : tokens.size(1)], read(build(config), tokens), rtol=0, atol=1e-4)
    assert model.decoder.memory.bank.num_tokens == [20, 8]  # 21 and 9 tokens, chunks of 2
    assert model.decoder.memory.bank.num_pending == [1, 1]
    assert not output.isnan().any()


@pytest.mark.parametrize("scope", ["stream", "batch"])
def test_a_segment_without_tokens_is_harmless(build, backbone, task, scope):
    """What a shard gets whose streams have all run out."""
    empty, flags = torch.empty(2, 0, dtype=torch.long), torch.tensor([False, False])
    assert backbone(empty)[0].shape == (2, 0, 64)
    for config in (LongMemConfig, MemTRMConfig):
        model, tokens = build(config, memory_scope=scope), document(1, 2 * SEGMENT, rows=2)
        read(model, tokens)
        model.train()
        model.zero_grad()
        sample = {
            "net_input": {"src_tokens": empty, "new_document": flags},
            "target": empty,
            "ntokens": 0,
            "nsentences": 2,
        }
        for _ in range(2):
            loss, _, _ = LongMemCrossEntropyCriterion(task)(model, sample)
            loss.backward()
            assert loss.item() == 0
        model.eval()
        assert model(empty, new_document=flags)[0].shape == (2, 0, 64)
        assert set(model.decoder.memory.banks[False].num_tokens) <= {16, 32}


def test_batch_scope_shares_one_bank(build):
    """Row 1 finds what row 0 read; new documents forget once all rows start one."""
    tokens = document(1, 2 * SEGMENT, rows=2)
    model = build(perturb=True, memory_scope="batch")
    shared = read(model, tokens)
    assert model.decoder.memory.bank.num_tokens == [32]
    assert differ(shared[:, SEGMENT:], read(build(perturb=True), tokens)[:, SEGMENT:])
    assert torch.equal(read(model, tokens), shared)
    one_row = torch.tensor([True, False])
    model(tokens[:, :SEGMENT], new_document=one_row)
    assert model.decoder.memory.bank.num_tokens == [48]


def test_flat_and_torch_search_give_the_same_logits(build):
    tokens = document(1, 5 * SEGMENT, rows=2)
    flat, plain = (
        read(build(perturb=True, memory_index=index), tokens) for index in ("flat", "torch")
    )
    assert_close(flat, plain, rtol=0, atol=1e-4)


def test_training_and_evaluation_do_not_see_each_other(build):
    model, tokens = build(perturb=True), document(1, 3 * SEGMENT)
    model.train()
    trained = [read(model, part, fresh=i == 0) for i, part in enumerate(tokens.split(SEGMENT, 1))]
    evaluated = build(perturb=True)
    for i, part in enumerate(tokens.split(SEGMENT, 1)):
        model.train()
        assert torch.equal(read(model, part, fresh=i == 0), trained[i])
        model.eval()
        other = document(10 + i, SEGMENT)
        assert torch.equal(read(model, other, i == 0), read(evaluated, other, i == 0))
    assert set(model.decoder.memory.banks) == {True, False}


def sample_of(tokens, fresh):
    source, target = tokens[:, :-1], tokens[:, 1:]
    flags = torch.full((len(tokens),), fresh)
    return {
        "net_input": {"src_tokens": source.contiguous(), "new_document": flags},
        "target": target.contiguous(),
        "ntokens": target.numel(),
        "nsentences": len(tokens),
    }


def train(model, task, steps):
    """Adam over what asks for a gradient, which is what fairseq's trainer hands to its optimizer."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    cfg = FairseqAdamConfig(adam_betas="(0.9, 0.98)", lr=[1e-2], tpu=False)
    optimizer = FairseqAdam(OmegaConf.structured(cfg), trainable)
    criterion = LongMemCrossEntropyCriterion(task)
    logs = []
    for step in range(steps):
        sample = sample_of(document(100 + step, SEGMENT + 1, rows=2), fresh=step == 0)
        optimizer.zero_grad()
        _, _, log = task.train_step(sample, model, criterion, optimizer, step)
        optimizer.step()
        logs.append(log)
    return optimizer, logs


def test_training_leaves_the_backbone_bit_identical(build, task):
    model = build()
    decoder = model.decoder
    before = copy.deepcopy(decoder.backbone.state_dict())
    sidenet = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, _ = train(model, task, steps=4)
    after = decoder.backbone.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(fingerprint(after), decoder.backbone_fingerprint)
    assert all(p.grad is None and not p.requires_grad for p in decoder.backbone.parameters())
    assert decoder.training and not any(m.training for m in decoder.backbone.modules())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in held}
    assert names == set(SAVED) - {"decoder.backbone_fingerprint"}
    for name in names:
        assert not torch.equal(model.state_dict()[name], sidenet[name]), name


LAYER = (
    "layer_norm.weight",
    "layer_norm.bias",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.out_proj.weight",
    "fc1.weight",
    "fc1.bias",
    "fc2.weight",
    "fc2.bias",
)
SAVED = [
    *(f"decoder.layers.0.{name}" for name in LAYER),
    *(f"decoder.layers.1.{name}" for name in LAYER),
    "decoder.layers.1.self_attn.memory_bias",
    "decoder.layer_norm.weight",
    "decoder.layer_norm.bias",
    "decoder.backbone_fingerprint",
]


def test_a_checkpoint_holds_the_sidenet_alone(build):
    assert sorted(build().state_dict()) == sorted(SAVED)
    saved = sorted(build(no_memory=True).state_dict())
    assert saved == sorted(set(SAVED) - {"decoder.layers.1.self_attn.memory_bias"})


def test_a_sidenet_goes_back_to_its_backbone_and_to_no_other(build, task, tmp_path):
    tokens = document(1, 3 * SEGMENT)
    trained, loaded = build(perturb=True), build()
    loaded.load_state_dict(trained.state_dict())
    assert torch.equal(read(loaded, tokens), read(trained, tokens))
    path = save_backbone(tmp_path / "other.pt", task.source_dictionary, 7, smeared_key_layers=[3])
    other = build(path=path)
    ours, theirs = (
        model.decoder.backbone_fingerprint.numpy().tobytes().hex()[:16]
        for model in (trained, other)
    )
    assert ours != theirs
    with pytest.raises(ValueError) as error:
        other.load_state_dict(trained.state_dict())
    assert str(error.value) == (
        f"this SideNet was trained with the backbone {ours}, not with {theirs}: give its own "
        "backbone as --pretrained-model-path"
    )


def test_fingerprints_tell_names_shapes_and_values_apart():
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 3)}
    same = fingerprint(state)
    assert same.dtype == torch.uint8 and same.shape == (32,)
    assert torch.equal(fingerprint(dict(reversed(list(state.items())))), same)
    for other in (
        {**state, "a": torch.tensor([1.0, 2.0001])},
        {**state, "b": torch.zeros(3, 2)},
        {"c": state["a"], "b": state["b"]},
    ):
        assert not torch.equal(fingerprint(other), same)


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_bfloat16_is_close_to_float32(build, config):
    tokens = document(1, 4 * SEGMENT, rows=2)
    # the memory is no larger than what is retrieved: rounding cannot choose other chunks
    sizes = {"memory_size": SEGMENT, "k": SEGMENT, "chunk_size": 2}
    exact = read(build(config, **sizes), tokens)
    rounded = build(config, compute_dtype="bfloat16", **sizes)
    logits = read(rounded, tokens).float()
    error = (logits - exact).pow(2).mean().sqrt() / exact.std()
    assert 1e-4 < error < 0.03
    assert rounded.decoder.memory.bank.keys.dtype == torch.bfloat16
    trained = {p.dtype for p in rounded.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    if config is LongMemConfig:
        assert rounded.decoder.backbone.layers[0].fc1.weight.dtype == torch.bfloat16


def test_bfloat16_training_gets_gradients_close_to_float32(build, task):
    gradients = []
    for dtype in ("float32", "bfloat16"):
        model = build(perturb=True, compute_dtype=dtype, k=SEGMENT, memory_size=SEGMENT)
        criterion = LongMemCrossEntropyCriterion(task)
        model.train()
        for step in range(2):
            model.zero_grad()
            sample = sample_of(document(step, SEGMENT + 1, rows=2), fresh=step == 0)
            criterion(model, sample)[0].backward()
        named = sorted(model.named_parameters())
        gradients.append({name: p.grad for name, p in named if p.requires_grad})
    for name, exact in gradients[0].items():
        rounded = gradients[1][name]
        assert rounded.dtype == torch.float32
        error = (rounded - exact).norm() / exact.norm()
        assert error < 0.1, f"{name}: {error}"


@pytest.mark.parametrize("config", [LongMemConfig, MemTRMConfig])
def test_the_trainers_dummy_batch_leaves_memory_alone(build, task, config):
    model = build(config)
    optimizer, _ = train(model, task, steps=2)
    bank = model.decoder.memory.bank
    before = copy.deepcopy(bank.state_dict())
    optimizer.zero_grad()
    sample = sample_of(document(9, SEGMENT + 1, rows=2), fresh=True)
    criterion = LongMemCrossEntropyCriterion(task)
    loss, _, _ = task.train_step(sample, model, criterion, optimizer, 2, ignore_grad=True)
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert model.decoder.memory.bank is bank and not model.decoder.memory.read_only
    after = bank.state_dict()
    assert after["num_written"] == before["num_written"] == [8, 8]
    for name in ("keys", "values", "chunk_keys", "pending_keys", "pending_values"):
        assert torch.equal(after[name], before[name])


def test_memtrm_starts_as_its_backbone(build, backbone):
    model, tokens = build(MemTRMConfig, embed_dim=64), document(1, 2 * SEGMENT, rows=2)
    layers = model.decoder.layers
    assert model.decoder.embed_tokens.embedding_dim == 32
    assert [layer.self_attn.num_heads for layer in layers] == [4] * 4
    assert [layer.self_attn.smeared_keys for layer in layers] == [False, False, False, True]
    output = read(model, tokens)
    assert_close(output[:, :SEGMENT], backbone(tokens[:, :SEGMENT])[0], rtol=0, atol=1e-5)
    assert differ(output[:, SEGMENT:], backbone(tokens[:, SEGMENT:])[0])
    assert all(p.requires_grad for p in model.parameters())
    expected = set(backbone.state_dict()) | {"decoder.layers.3.self_attn.memory_bias"}
    assert set(model.state_dict()) == expected
    without = build(MemTRMConfig, no_memory=True)
    expected = torch.cat([backbone(part)[0] for part in tokens.split(SEGMENT, dim=1)], dim=1)
    assert_close(read(without, tokens), expected, rtol=0, atol=1e-5)


def test_a_saved_memtrm_does_not_need_its_backbone(backbone_path):
    cfg = OmegaConf.structured(MemTRMConfig(pretrained_model_path=backbone_path))
    MemTRM.settle_config(cfg, from_checkpoint=False)
    assert (cfg.embed_dim, cfg.num_layers, cfg.num_attention_heads) == (32, 4, 4)
    assert cfg.smeared_key_layers == [3] and cfg.pretrained_model_path == backbone_path
    MemTRM.settle_config(cfg, from_checkpoint=True)
    assert cfg.pretrained_model_path == ""


def test_empty_memory_is_the_sidenet_without_a_bank(build):
    tokens = document(1, 3 * SEGMENT, rows=2)
    own, empty, without = (build(perturb=True, no_memory=no) for no in (False, False, True))
    use_memory(own, "own")
    use_memory(empty, "empty")
    assert_close(read(empty, tokens), read(without, tokens), rtol=0, atol=1e-6)
    assert differ(read(own, tokens), read(without, tokens))


def test_other_memory_is_that_of_the_next_stream(build):
    tokens = document(1, 2 * SEGMENT, rows=3)
    model = build(perturb=True)
    use_memory(model, "other")
    output = read(model, tokens)
    swapped = build(perturb=True)
    read(swapped, tokens[:, :SEGMENT].roll(-1, dims=0))
    expected = read(swapped, tokens[:, SEGMENT:], fresh=False)
    assert_close(output[:, SEGMENT:], expected, rtol=0, atol=1e-5)
    assert differ(output[:, SEGMENT:], read(build(perturb=True), tokens)[:, SEGMENT:])


def test_controls_need_a_memory(build, backbone):
    for model in (backbone, build(no_memory=True)):
        with pytest.raises(ValueError) as error:
            use_memory(model, "other")
        assert str(error.value) == "--memory other needs a model with a memory bank"


def test_criterion_sums_losses_and_reports_memory(build, task):
    model = build()
    _, logs = train(model, task, steps=2)
    assert [log["memory_tokens"] for log in logs] == [0, 8]
    assert [log["memory_batches"] for log in logs] == [1, 1]
    assert logs[0]["gate"].item() == 0.5
    model.eval()
    sample = sample_of(document(3, SEGMENT + 1, rows=2), fresh=True)
    sample["target"][0, 5:] = task.target_dictionary.pad()
    sample["ntokens"] = 13
    loss, size, log = LongMemCrossEntropyCriterion(task)(model, sample)
    logits = read(model, sample["net_input"]["src_tokens"])
    probabilities = logits.log_softmax(-1)
    expected = -sum(
        probabilities[row, t, sample["target"][row, t]]
        for row in range(2)
        for t in range(5 if row == 0 else 8)
    )
    assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert size == log["sample_size"] == 13


@pytest.mark.parametrize(
    "options, message",
    [
        ({"retrieval_layer_index": 4}, "--retrieval-layer-index (4) must be between 0 and 3: "),
        (
            {"layer_reduction_factor": 3},
            "--layer-reduction-factor (3) must divide the backbone's 4",
        ),
        ({"k": 7}, "--k (7) must be a multiple of --chunk-size (2)"),
        ({"memory_size": 6, "k": 2}, "--memory-size (6) must be at least one segment, "),
        (
            {"no_memory": True, "use_external_memory": True},
            "--no-memory contradicts --use-external-memory: give one of them",
        ),
        ({"path": ""}, "--pretrained-model-path is missing: give the backbone's checkpoint"),
    ],
)
def test_options_that_do_not_fit(build, options, message):
    with pytest.raises(ValueError) as error:
        build(**options)
    assert str(error.value).startswith(message)


def test_a_missing_backbone_is_named(build):
    with pytest.raises(FileNotFoundError) as error:
        build(path="nowhere.pt")
    assert str(error.value) == "--pretrained-model-path (nowhere.pt): no such file"


@pytest.mark.parametrize("changed", [0, 1])
def test_a_backbone_of_another_dictionary_is_refused(build, task, tmp_path, changed):
    """Of other size, and of the same size with other symbols."""
    dictionary = Dictionary()
    for i in range(60 + changed):
        dictionary.add_symbol(f"other{i}")
    path = save_backbone(tmp_path / "other.pt", dictionary, seed=1)
    with pytest.raises(ValueError) as error:
        build(path=path)
    assert str(error.value) == (
        f"--pretrained-model-path ({path}) was trained with another dictionary ({64 + changed} "
        "symbols) than the data's dict.txt (64 symbols): prepare the data with the backbone's "
        "dictionary and tokenizer"
    )


def test_a_checkpoint_of_another_model_is_refused(build, backbone_path, tmp_path):
    state = torch.load(backbone_path)
    state["cfg"]["model"]["_name"] = "longmem"
    path = tmp_path / "longmem.pt"
    torch.save(state, path)
    with pytest.raises(ValueError) as error:
        build(path=str(path))
    message = f"--pretrained-model-path ({path}) holds a model of architecture longmem, expected"
    assert str(error.value).startswith(message)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_files_that_are_no_checkpoints(build, tmp_path, backbone_path, content):
    path = tmp_path / "damaged.pt"
    if content is None:
        with open(backbone_path, "rb") as file:
            content = file.read()[:-1000]
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        build(path=str(path))
    assert str(error.value) == f"{path} is not a checkpoint, or a damaged one"


def test_a_malicious_checkpoint_is_refused_not_executed(build, tmp_path):
    path = tmp_path / "malicious.pt"
    torch.save({"model": Malicious(tmp_path / "executed")}, path)
    with pytest.raises(ValueError) as error:
        build(path=str(path))
    assert str(error.value).startswith(f"{path}: refused, it would execute code when loaded")
    assert not (tmp_path / "executed").exists()
