"""Averaging and exact LoRA averaging against slow loops over dense matrices, and against peft's own products."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from fedrag.errors import ConfigError, InputError, TrainingError
from fedrag.federated.strategies.averaging import Averaging
from fedrag.federated.strategies.lora import ExactLoRA, freeze_lora_a
from fedrag.federated.strategies.pairs import pairs
from fedrag.federated.strategies.strategy import Member, Update
from tiny import tiny_llama

A, B = "q.lora_A.default.weight", "q.lora_B.default.weight"


def update(state, *, site="a", weight=1.0, scales=None, metrics=None):
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Update(Member(site, shapes, scales or {}), state, weight, metrics or {})


def one_round(strategy, state, updates, round=0):
    strategy.begin(round, state)
    for each in updates:
        strategy.add(each)
    return strategy.finish()


def lora(rank, *, d=9, e=7, scale=1.0):
    """A site's pair and a parameter of another kind, at random."""
    return {
        A: torch.randn(rank, e),
        "norm": torch.randn(e),
        B: torch.randn(d, rank) / scale,
    }


def product(state, scale=1.0):
    return scale * state[B].double() @ state[A].double()


def best(matrix, rank):
    u, s, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * s[:rank]) @ v[:rank])


# -- averaging


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(0, 1000)), min_size=1, max_size=6))
def test_averaging_weighs_every_site(rows):
    updates = [update({"w": torch.tensor([value])}, weight=weight) for value, weight in rows]
    total = sum(weight for _, weight in rows)
    if not total:
        with pytest.raises(TrainingError, match="weigh 0 in total"):
            one_round(Averaging(), {"w": torch.zeros(1)}, updates)
        return
    new, numbers = one_round(Averaging(), {"w": torch.zeros(1)}, updates)
    exact = sum(Fraction(value) * weight for value, weight in rows) / total
    assert new["w"].item() == pytest.approx(float(exact), rel=1e-7, abs=1e-12)
    assert numbers == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("make", [Averaging, ExactLoRA])
def test_one_site_gets_back_its_state_to_the_bit(make, dtype):
    start = {name: value.to(dtype) for name, value in lora(2).items()}
    mine = {name: value.to(dtype) for name, value in lora(2).items()}
    new, _ = one_round(make(), start, [update(mine, weight=37, scales={"q": 2.0})])
    assert list(new) == list(start)
    for name, value in mine.items():
        assert torch.equal(new[name], value)
        assert new[name].dtype == dtype


def test_averaging_holds_the_dtype_and_order_of_the_old_state():
    start = {"b": torch.zeros(2, dtype=torch.bfloat16), "a": torch.zeros(3)}
    reply = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    new, _ = one_round(Averaging(), start, [update(reply), update({n: 2 * v for n, v in reply.items()})])
    assert [(name, value.dtype, value[0].item()) for name, value in new.items()] == [
        ("b", torch.bfloat16, 1.5),
        ("a", torch.float32, 1.5),
    ]


def test_a_site_without_weight_changes_nothing():
    start, mine = {"w": torch.zeros(3)}, {"w": torch.randn(3)}
    new, _ = one_round(Averaging(), start, [update({"w": torch.randn(3)}, weight=0.0), update(mine, weight=5)])
    assert torch.equal(new["w"], mine["w"])


@pytest.mark.parametrize(
    ("state", "weight", "complaint"),
    [
        ({"v": torch.zeros(2)}, 1.0, "'v' is not in both"),
        ({"w": torch.zeros(2), "v": torch.zeros(2)}, 1.0, "'v' is not in both"),
        ({"w": torch.zeros(1)}, 1.0, r"shape \(1,\), the state's has \(2,\)"),
        ({"w": torch.zeros(2)}, -1.0, "weight -1.0"),
        ({"w": torch.zeros(2)}, float("nan"), "weight nan"),
        ({"w": torch.zeros(2)}, float("inf"), "weight inf"),
    ],
)
def test_averaging_refuses_what_has_no_mean(state, weight, complaint):
    averaging = Averaging()
    averaging.begin(0, {"w": torch.zeros(2)})
    with pytest.raises(InputError, match=f"site 'north'.*{complaint}"):
        averaging.add(update(state, site="north", weight=weight))


def test_averaging_keeps_nothing_to_resume_from():
    assert Averaging().state_dict() == {}
    Averaging().load_state_dict({})
    with pytest.raises(ConfigError, match="'m_t': resume with the strategy that wrote it"):
        Averaging().load_state_dict({"m_t": torch.zeros(1)})


# -- exact LoRA


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_the_new_product_is_the_best_approximation_of_the_mean_product(scale):
    start, sites, weights = lora(3), [lora(3) for _ in range(4)], [5, 1, 3, 11]
    updates = [update(s, weight=w, scales={"q": scale}) for s, w in zip(sites, weights, strict=True)]
    new, numbers = one_round(ExactLoRA(), start, updates)
    mean = sum((w * product(s, scale) for s, w in zip(sites, weights, strict=True))) / 20
    apart = (
        scale
        * sum((w * s[B].double() for s, w in zip(sites, weights, strict=True)))
        @ sum(w * s[A].double() for s, w in zip(sites, weights, strict=True))
    )
    torch.testing.assert_close(product(new, scale), best(mean, 3), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(new["norm"], sum(w * s["norm"] for s, w in zip(sites, weights, strict=True)) / 20)
    size = torch.linalg.matrix_norm(mean)
    wrong, lost = (torch.linalg.matrix_norm(mean - other) / size for other in (apart / 400, best(mean, 3)))
    assert numbers["lora_averaging_error"] == pytest.approx(wrong.item(), rel=1e-6)
    assert numbers["lora_truncation_error"] == pytest.approx(lost.item(), rel=1e-6)
    assert list(new) == list(start)
    assert {value.dtype for value in new.values()} == {torch.float32}


def test_the_errors_are_over_all_pairs():
    wide = {"k.lora_A.weight": torch.randn(1, 40), "k.lora_B.weight": 10 * torch.randn(30, 1)}
    sites = [lora(1) | {name: value + torch.randn_like(value) for name, value in wide.items()} for _ in range(2)]
    _, numbers = one_round(ExactLoRA(), sites[0], [update(s, scales={"q": 1.0, "k": 3.0}) for s in sites])
    wrong, lost, whole = 0.0, 0.0, 0.0
    for a, b, scale in ((A, B, 1.0), ("k.lora_A.weight", "k.lora_B.weight", 3.0)):
        mean = sum(scale * s[b].double() @ s[a].double() for s in sites) / 2
        apart = scale * sum(s[b].double() for s in sites) @ sum(s[a].double() for s in sites) / 4
        wrong += torch.linalg.matrix_norm(mean - apart).item() ** 2
        lost += torch.linalg.matrix_norm(mean - best(mean, 1)).item() ** 2
        whole += torch.linalg.matrix_norm(mean).item() ** 2
    assert numbers["lora_averaging_error"] == pytest.approx((wrong / whole) ** 0.5, rel=1e-6)
    assert numbers["lora_truncation_error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-6)


def test_nothing_is_lost_where_the_rank_holds_the_mean():
    shared = torch.randn(2, 7)
    sites = [lora(2) | {A: shared} for _ in range(3)]
    new, numbers = one_round(ExactLoRA(), sites[0], [update(s, scales={"q": 1.0}) for s in sites])
    torch.testing.assert_close(product(new), sum(map(product, sites)) / 3, atol=1e-6, rtol=1e-5)
    assert numbers["lora_averaging_error"] < 1e-12  # with one A, averaging B is averaging the products
    assert numbers["lora_truncation_error"] < 1e-12


def test_equal_sites_stay_as_they_are():
    mine = lora(3)
    sites = [update(mine, site=site, weight=w, scales={"q": 0.5}) for site, w in (("a", 3), ("b", 4))]
    new, numbers = one_round(ExactLoRA(), lora(3), sites)
    assert all(torch.equal(new[name], value) for name, value in mine.items())
    assert max(numbers.values()) < 1e-12


def test_the_factors_are_those_nearest_to_plain_means():
    """So that training goes on as after averaging A and B apart, but for its error."""
    begin = lora(3)
    drift = [{name: value + 0.01 * torch.randn_like(value) for name, value in begin.items()} for _ in range(4)]
    new, numbers = one_round(ExactLoRA(), begin, [update(s, scales={"q": 0.5}) for s in drift])
    plain, _ = one_round(Averaging(), begin, [update(s) for s in drift])
    assert numbers["lora_averaging_error"] < 1e-3
    for name in (A, B):
        torch.testing.assert_close(new[name], plain[name], atol=1e-3, rtol=1e-3)
    assert not torch.equal(new[B], plain[B])


def test_sites_with_different_scales_are_averaged_by_their_products():
    first, second = lora(2), lora(2)
    strategy = ExactLoRA()
    members = [update(first, site="a", scales={"q": 4.0}), update(second, site="b", scales={"q": 0.5})]
    new, _ = one_round(strategy, lora(2), members)
    mean = best((product(first, 4.0) + product(second, 0.5)) / 2, 2)
    for each, scale in zip(members, (4.0, 0.5), strict=True):
        got = strategy.outgoing(new, each.member)
        torch.testing.assert_close(product(got, scale), mean, atol=1e-5, rtol=1e-5)
        assert {name: tuple(value.shape) for name, value in got.items()} == each.member.shapes
    assert strategy.outgoing(new, members[0].member) == new  # the very tensors: the state has the first site's scale


def test_sites_of_different_ranks():
    ranks, scales, weights = (2, 6, 4), (8.0, 8 / 3, 4.0), (1, 2, 5)
    sites = [lora(rank) for rank in ranks]
    updates = [
        update(state, site=f"r{rank}", weight=weight, scales={"q": scale})
        for state, rank, scale, weight in zip(sites, ranks, scales, weights, strict=True)
    ]
    strategy = ExactLoRA()
    new, numbers = one_round(strategy, sites[0], updates)
    mean = sum(w * product(s, scale) for s, scale, w in zip(sites, scales, weights, strict=True)) / 8
    assert new[A].shape[0] == 6  # the largest rank met
    assert "lora_averaging_error" not in numbers
    torch.testing.assert_close(product(new, 8 / 3), best(mean, 6), atol=1e-5, rtol=1e-5)
    for each, rank, scale in zip(updates, ranks, scales, strict=True):
        got = strategy.outgoing(new, each.member)
        assert {name: tuple(value.shape) for name, value in got.items()} == each.member.shapes
        assert list(got) == list(new)
        torch.testing.assert_close(product(got, scale), best(mean, rank), atol=1e-5, rtol=1e-5)
    again, _ = one_round(strategy, new, [update(strategy.outgoing(new, updates[2].member), scales={"q": 4.0})], round=1)
    assert again[A].shape[0] == 6
    torch.testing.assert_close(product(again, 8 / 3), best(mean, 4), atol=1e-5, rtol=1e-5)


def test_a_site_of_another_rank_can_learn_in_all_directions():
    start = lora(4) | {B: torch.zeros(9, 4)}  # as every adapter begins
    strategy = ExactLoRA()
    strategy.begin(0, start)
    for rank in (2, 6):
        member = update(lora(rank), site=f"r{rank}", scales={"q": 2.0}).member
        got = strategy.outgoing(start, member)
        assert not got[B].any()
        assert torch.linalg.matrix_rank(got[A]) == rank
        assert torch.equal(got[A], strategy.outgoing(start, member)[A])  # drawn from a seed of its own
        wanted = start[A].norm(dim=1).square().mean().sqrt()  # rows as long as before
        assert got[A].norm(dim=1).mean() == pytest.approx(wanted.item(), rel=0.01 if rank == 2 else 0.5)


def test_directions_that_the_mean_lacks_go_on_learning():
    thin = lora(3) | {B: torch.randn(9, 1) @ torch.randn(1, 3)}
    other = thin | {B: 2 * thin[B]}
    new, numbers = one_round(ExactLoRA(), thin, [update(s, scales={"q": 1.0}) for s in (thin, other)])
    torch.testing.assert_close(product(new), 1.5 * product(thin), atol=1e-5, rtol=1e-5)
    assert torch.linalg.matrix_rank(new[A]) == 3
    assert torch.linalg.matrix_rank(new[B], rtol=1e-5) == 1
    assert numbers["lora_truncation_error"] < 1e-6


def test_an_unknown_scale_is_refused_where_it_matters():
    strategy, start = ExactLoRA(), lora(4)
    small = update(lora(2), site="small", scales={"q": 2.0}).member
    large = update(start, site="large", scales={"q": 1.0}).member
    strategy.begin(0, start)
    with pytest.raises(ConfigError, match=r"rank 4 and site 'small' at rank 2.*let one take part"):
        strategy.outgoing(start, small)
    strategy.meet(start, [small, large, update(start, scales={"q": 5.0}).member])
    torch.testing.assert_close(
        product(strategy.outgoing(start, small), 2.0), best(product(start), 2), atol=1e-5, rtol=1e-5
    )


def test_exact_lora_resumes():
    sites = [update(lora(rank), site=f"r{rank}", scales={"q": 8 / rank}) for rank in (2, 4)]
    straight, resumed = ExactLoRA(), ExactLoRA()
    state, _ = one_round(straight, sites[0].state, sites)
    resumed.load_state_dict({name: value.clone() for name, value in straight.state_dict().items()})
    for strategy in (straight, resumed):
        strategy.begin(1, state)
    outs = [[strategy.outgoing(state, site.member) for site in sites] for strategy in (straight, resumed)]
    for one, other in zip(*outs, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    straight.begin(0, state)
    assert straight.state_dict() == {}  # a new run


def test_exact_lora_refuses_what_it_cannot_average():
    strategy, start = ExactLoRA(), lora(2)
    with pytest.raises(ConfigError, match=r"none of the 2 parameters.*Averaging\(\)"):
        strategy.begin(0, {"w": torch.zeros(1), B: torch.zeros(9, 2)})
    strategy.begin(0, start)
    with pytest.raises(InputError, match="site 'a' gives None as the scale of 'q'"):
        strategy.add(update(start))
    with pytest.raises(InputError, match=r"site 'a' gives 0\.0 as the scale of 'q'"):
        strategy.outgoing(start, update(start, scales={"q": 0.0}).member)
    for odd in (start | {B: torch.zeros(8, 2)}, start | {B: torch.zeros(9, 3)}, start | {A: torch.zeros(2, 6)}):
        with pytest.raises(InputError, match="differ in the rank alone"):
            strategy.add(update(odd, scales={"q": 1.0}))
        with pytest.raises(InputError, match="differ in the rank alone"):
            strategy.outgoing(start, update(odd, scales={"q": 1.0}).member)
    with pytest.raises(InputError, match="site 'a' replied without 'norm'"):
        strategy.add(update({A: start[A], B: start[B]}, scales={"q": 1.0}))
    with pytest.raises(InputError, match="has no parameter"):
        strategy.outgoing(start, update({A: start[A]}, scales={"q": 1.0}).member)
    strategy.begin(0, start)
    strategy.add(update(start, weight=0.0, scales={"q": 1.0}))
    with pytest.raises(TrainingError, match="weigh 0 in total"):
        strategy.finish()


def test_biases_under_different_scales_are_refused():
    start = lora(2) | {"q.lora_B.default.bias": torch.zeros(9)}
    same = [update(start, scales={"q": 2.0}), update(start, scales={"q": 2.0})]
    assert "q.lora_B.default.bias" in one_round(ExactLoRA(), start, same)[0]
    with pytest.raises(ConfigError, match="without lora_bias"):
        one_round(ExactLoRA(), start, [same[0], update(start, scales={"q": 1.0})])


def test_pairs_are_found_by_pefts_names():
    names = [
        "x.lora_A.weight",
        "x.lora_B.weight",
        "generator/m.lora_A.default.weight",
        "generator/m.lora_B.default.weight",
        "e.lora_embedding_A.default",
        "e.lora_embedding_B.default",
        "lora_A.A.weight",
        "lora_B.A.weight",
        "alone.lora_A.weight",
        "x.lora_B.bias",
        "x.lora_magnitude_vector.default.weight",
    ]
    found = pairs(reversed(names))
    assert {(pair.a, pair.b) for pair in found} == {(names[i], names[i + 1]) for i in (0, 2, 4, 6)}
    assert {pair.module for pair in found} == {"x", "generator/m", "e", ""}
    assert [pair.a for pair in found if pair.embedding] == ["e.lora_embedding_A.default"]


# -- with peft itself


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.conv, self.out = nn.Embedding(10, 6), nn.Conv1d(6, 5, 3), nn.Linear(5, 4)


def adapted(rank, alpha, rslora=False):
    targets = ["words", "conv", "out"]
    model = get_peft_model(Net(), LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_rslora=rslora))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return model


def exchanged(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def scales(model):
    return {name: m.scaling["default"] for name, m in model.named_modules() if hasattr(m, "scaling")}


def changes(model):
    """peft's own idea of what each adapter does, as matrices."""
    deltas = {n: m.get_delta_weight("default").detach() for n, m in model.named_modules() if hasattr(m, "scaling")}
    return {n: (d.T if "words" in n else d).flatten(1).double() for n, d in deltas.items()}


def test_linear_layers_embeddings_and_convolutions_of_peft():
    models = [adapted(2, 4), adapted(3, 4), adapted(2, 7, rslora=True)]
    updates = [update(exchanged(m), site=str(i), weight=i + 1, scales=scales(m)) for i, m in enumerate(models)]
    mean = {n: sum((i + 1) * changes(m)[n] for i, m in enumerate(models)) / 6 for n in changes(models[0])}
    strategy = ExactLoRA()
    new, numbers = one_round(strategy, exchanged(models[0]), updates)
    assert numbers["lora_truncation_error"] > 0.01
    for model, each, rank in zip(models, updates, (2, 3, 2), strict=True):
        loaded = model.load_state_dict(dict(strategy.outgoing(new, each.member)), strict=False)
        assert not loaded.unexpected_keys
        for name, change in changes(model).items():
            torch.testing.assert_close(change, best(mean[name], rank), atol=1e-4, rtol=1e-4)


def test_an_embedding_begins_as_pefts_does():
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["words"]))
    start, other = exchanged(model), exchanged(get_peft_model(Net(), LoraConfig(r=3, target_modules=["words"])))
    name = "base_model.model.words.lora_embedding_A.default"
    assert not start[name].any()
    strategy = ExactLoRA()
    strategy.begin(0, start)
    got = strategy.outgoing(start, update(other, scales=scales(model)).member)
    assert not got[name].any()
    assert torch.linalg.matrix_rank(got[name.replace("A.", "B.")]) == 3


def test_grouped_convolutions_are_refused():
    start = {"c.lora_A.weight": torch.zeros(4, 2, 3), "c.lora_B.weight": torch.zeros(6, 2, 1)}  # two groups
    strategy = ExactLoRA()
    strategy.begin(0, start)
    with pytest.raises(InputError, match="grouped convolutions"):
        strategy.add(update(start, scales={"c": 1.0}))


def test_training_b_alone_makes_averaging_exact():
    torch.manual_seed(7)
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear"))
    before = sum(p.numel() for p in exchanged(model).values())
    assert freeze_lora_a(model) == 14
    start = exchanged(model)
    assert all(".lora_B." in name for name in start)
    assert sum(p.numel() for p in start.values()) < 0.6 * before
    sites = [{name: torch.randn_like(value) for name, value in start.items()} for _ in range(3)]
    deltas = []
    for site in [*sites, one_round(Averaging(), start, [update(s) for s in sites])[0]]:
        model.load_state_dict(site, strict=False)
        deltas.append({n: m.get_delta_weight("default").double() for n, m in model.named_modules() if hasattr(m, "r")})
    for name, change in deltas[-1].items():
        mean = sum(delta[name] for delta in deltas[:3]) / 3
        torch.testing.assert_close(change, mean, atol=1e-5, rtol=1e-5)


def test_freezing_refuses_what_would_do_nothing():
    with pytest.raises(ConfigError, match="the Net has no lora_A"):
        freeze_lora_a(Net())
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["words", "out"]))
    with pytest.raises(ConfigError, match=r"is zero.*leave embeddings out"):
        freeze_lora_a(model)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)


def test_the_order_of_a_reply_does_not_matter():
    sites = [update(lora(2), site=site, scales={"q": 1.0}) for site in "ab"]
    turned = [replace(site, state=dict(reversed(list(site.state.items())))) for site in sites]
    start = lora(2)
    straight, other = one_round(ExactLoRA(), start, sites)[0], one_round(ExactLoRA(), start, turned)[0]
    assert list(straight) == list(other)
    assert all(torch.equal(straight[name], other[name]) for name in start)
