"""Flower's strategies behind our protocol, against the papers' formulas in float64, and what they must refuse."""

import logging
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import AggregationError

from fedrag.errors import ConfigError, InputError, QuorumError, TrainingError
from fedrag.federated.engines.local import identity
from fedrag.federated.plan import Plan
from fedrag.federated.strategies.flower import FlowerStrategy
from fedrag.federated.strategies.strategy import Member, Update

WEIGHTS = (30, 10, 20, 40, 25)
SHARES = np.array(WEIGHTS) / sum(WEIGHTS)


@pytest.fixture(autouse=True)
def _server():
    """Flower writes messages as somebody."""
    with identity(7):
        yield


def start():
    return {"z": torch.randn(3, 2), "b": torch.randn(4).bfloat16(), "a": torch.randn(())}


def update(state, *, site="a", weight=1.0, metrics=None):
    return Update(Member(site, {}, {}), state, weight, metrics or {})


def trained(state, round, sites=5):
    """What sites answer in a round; the same for the same state."""
    draw = torch.Generator().manual_seed(round)
    replies = []
    for site in range(sites):
        moved = {n: (v.double() + torch.randn(v.shape, generator=draw)).to(v.dtype) for n, v in state.items()}
        replies.append(update(moved, site=str(site), weight=WEIGHTS[site], metrics={"train_loss": 0.5 + site}))
    return replies


def rounds(strategy, state, numbers, sites=5):
    """Run rounds; yield the state after each."""
    for number in numbers:
        strategy.begin(number, state)
        for each in trained(state, number, sites):
            strategy.add(each)
        state, _ = strategy.finish()
        yield state


def plain(state):
    return {name: value.double().numpy() for name, value in state.items()}


class Oracle:
    """The server optimisers of Hsu et al. 2019 and Reddi et al. 2020 (Algorithm 2), a parameter at a time."""

    def __init__(self, kind):
        self.kind, self.m, self.v = kind, {}, {}

    def __call__(self, number, state, replies):
        new = {}
        for name, w in plain(state).items():
            sites = np.stack([plain(reply.state)[name] for reply in replies])
            new[name] = self.step(name, number + 1, w, sites, [reply.metrics["train_loss"] for reply in replies])
        return new

    def step(self, name, t, w, sites, losses):
        mean = np.tensordot(SHARES, sites, 1)
        delta = mean - w
        if self.kind == "avg":
            return mean
        if self.kind == "median":
            return np.median(sites, axis=0)
        if self.kind == "trimmed":
            return np.sort(sites, axis=0)[1:-1].mean(axis=0)
        if self.kind == "avgm":
            self.m[name] = 0.9 * self.m.get(name, 0 * w) + delta
            return w + 0.5 * self.m[name]
        beta_1 = 0 if self.kind == "adagrad" else 0.9
        self.m[name] = beta_1 * self.m.get(name, 0 * w) + (1 - beta_1) * delta
        v, square = self.v.get(name, 0 * w), delta**2
        self.v[name] = {
            "adagrad": v + square,
            "adam": 0.99 * v + 0.01 * square,
            "yogi": v - 0.01 * square * np.sign(v - square),
        }[self.kind]
        rate = 0.1 * (np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1)) if self.kind == "adam" else 1)
        return w + rate * self.m[name] / (np.sqrt(self.v[name]) + 1e-3)


OPTIMISERS = {
    "avg": flower.FedAvg,
    "avgm": lambda: flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "adagrad": flower.FedAdagrad,
    "adam": flower.FedAdam,
    "yogi": lambda: flower.FedYogi(eta=0.1),
}
STATELESS = {"median": flower.FedMedian, "trimmed": flower.FedTrimmedAvg}


@pytest.mark.parametrize("kind", [*OPTIMISERS, *STATELESS])
def test_each_equals_its_formula_over_four_rounds(kind):
    state, oracle = start(), Oracle(kind)
    for number, new in enumerate(rounds(FlowerStrategy((OPTIMISERS | STATELESS)[kind]()), state, range(4))):
        wanted = oracle(number, state, trained(state, number))
        for name, value in new.items():
            tolerance = 0.02 if value.dtype == torch.bfloat16 else 1e-5
            np.testing.assert_allclose(value.double().numpy(), wanted[name], rtol=tolerance, atol=tolerance)
        assert [(name, v.dtype, v.shape) for name, v in new.items()] == [
            (name, v.dtype, v.shape) for name, v in state.items()
        ]
        state = new


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_resumed_run_is_the_same_to_the_bit(kind):
    state = start()
    straight = list(rounds(FlowerStrategy(OPTIMISERS[kind]()), state, range(5)))
    first = FlowerStrategy(OPTIMISERS[kind]())
    half = list(rounds(first, state, range(2)))[-1]
    kept = {name: value.clone() for name, value in sorted(first.state_dict().items())}  # as a file has them
    list(rounds(first, half, [2]))  # goes on, and must not touch what was kept
    second = FlowerStrategy(OPTIMISERS[kind]())
    second.load_state_dict(kept)
    for one, other in zip(straight[2:], rounds(second, half, range(2, 5)), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in state)
    assert bool(kept) == (kind != "avg")
    assert not any("current_arrays" in name for name in kept)  # that is the state itself


def test_runs_of_one_plan_share_no_momenta():
    given = flower.FedAdam()
    strategy, state = FlowerStrategy(given), start()
    one, other = list(rounds(strategy, state, range(3))), list(rounds(strategy, state, range(3)))
    assert all(torch.equal(one[-1][name], other[-1][name]) for name in state)
    assert given.m_t is None
    assert given.current_arrays is None


def test_one_site_is_enough_and_exact():
    state = {"w": torch.randn(50)}
    strategy = Plan(rounds=1, strategy=flower.FedAvg()).folding()
    new = next(rounds(strategy, state, [0], sites=1))
    assert torch.equal(new["w"], trained(state, 0, 1)[0].state["w"])


def test_momentum_starts_from_what_the_sites_got():
    state = {"w": torch.tensor([1.0])}
    strategy = FlowerStrategy(flower.FedAvgM(server_learning_rate=0.5))
    list(rounds(strategy, state, [0]))
    other = {"w": torch.tensor([100.0])}  # as after a cast to a coarser dtype, only more so
    strategy.begin(1, other)
    strategy.add(update({"w": torch.tensor([102.0])}))
    assert strategy.finish()[0]["w"].item() == 101


def test_nobodys_random_numbers_are_used_up_and_nothing_is_said(caplog):
    before = random.getstate()
    with caplog.at_level(logging.INFO, logger="flwr"):
        FlowerStrategy(flower.FedAvg()).begin(0, start())
        assert not caplog.records  # Flower would tell of nodes that do not exist
        assert logging.getLogger("flwr").level == logging.INFO
    assert random.getstate() == before


# -- robust ones


def krum_reference(sites, f):
    """Blanchard et al. 2017: the site with the least sum of squared distances to its n - f - 2 nearest others."""
    scores = []
    for i, one in enumerate(sites):
        distances = sorted(((one - other) ** 2).sum() for j, other in enumerate(sites) if j != i)
        scores.append(sum(distances[: len(sites) - f - 2]))
    return int(np.argmin(scores))


def test_krum_finds_small_changes_of_large_parameters():
    """In float32 it would pick the outlier here: the squared norms are 1e8 times the squared distances."""
    draw = np.random.default_rng(0)
    w = draw.normal(size=100_000)
    sites = [w + scale * 1e-4 * draw.normal(size=w.size) for scale in (3, 1, 1, 1, 1, 1)]
    strategy = FlowerStrategy(flower.Krum(num_malicious_nodes=1))
    strategy.begin(0, {"w": torch.from_numpy(w).float()})
    for i, site in enumerate(sites):
        strategy.add(update({"w": torch.from_numpy(site).float()}, site=str(i)))
    new, _ = strategy.finish()
    chosen = krum_reference([torch.from_numpy(site).float().double().numpy() for site in sites], 1)
    assert chosen != 0
    assert torch.equal(new["w"], torch.from_numpy(sites[chosen]).float())


def test_multikrum_and_bulyan_leave_a_hostile_site_out():
    for strategy, sites in (
        (flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2), 5),
        (flower.Bulyan(num_malicious_nodes=1), 7),
    ):
        wrapped = FlowerStrategy(strategy)
        wrapped.begin(0, {"w": torch.zeros(20)})
        for site in range(sites):
            wrapped.add(update({"w": torch.full((20,), 1e6) if site == 2 else torch.randn(20)}, site=str(site)))
        assert wrapped.finish()[0]["w"].abs().max() < 5


@pytest.mark.parametrize(
    ("strategy", "enough", "complaint"),
    [
        (flower.Krum(num_malicious_nodes=1), 5, r"Krum needs 5 replies against 1 malicious.*quorum=5"),
        (flower.Krum(), 3, "Krum needs 3 replies against 0 malicious"),
        (flower.MultiKrum(num_malicious_nodes=0, num_nodes_to_select=4), 4, "needs 4 replies .* choosing 4"),
        (flower.Bulyan(num_malicious_nodes=0), 3, "Bulyan needs 3 replies"),
        (flower.FedTrimmedAvg(beta=0.3), 4, r"needs 4 replies to trim any with beta=0.3"),
        (flower.FedTrimmedAvg(), 5, "needs 5 replies"),
    ],
)
def test_fewer_replies_than_a_guarantee_needs_are_refused(strategy, enough, complaint):
    wrapped, state = FlowerStrategy(strategy), {"w": torch.randn(4)}
    assert next(rounds(wrapped, state, [0], sites=enough))["w"].shape == (4,)
    with pytest.raises(QuorumError, match=complaint):
        next(rounds(wrapped, state, [0], sites=enough - 1))


def test_qfedavg_equals_its_formula():
    """Li et al. 2020 (arXiv 1905.10497), Algorithm 2, with L = 1 / rate."""
    q, rate, state = 0.5, 0.1, {"w": torch.randn(6)}
    new = next(rounds(FlowerStrategy(flower.QFedAvg(client_learning_rate=rate, q=q)), state, [0]))
    top, bottom = 0, 0
    for reply in trained(state, 0):
        loss, gradient = reply.metrics["train_loss"], (plain(state)["w"] - plain(reply.state)["w"]) / rate
        top += loss**q * gradient
        bottom += q * loss ** (q - 1) * (gradient**2).sum() + loss**q / rate
    np.testing.assert_allclose(new["w"].numpy(), plain(state)["w"] - top / bottom, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"'gain', which site '0' does not tell; it tells .'train_loss'."):
        next(rounds(FlowerStrategy(flower.QFedAvg(rate, train_loss_key="gain")), state, [0]))


# -- what is refused


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: flower.FedAvg(fraction_train=0.5), r"fraction_train=0.5.*set Plan\(fraction"),
        (lambda: flower.FedAdam(min_train_nodes=3), r"min_train_nodes=3.*set Plan\(quorum"),
        (lambda: flower.FedAvg(min_available_nodes=9), r"min_available_nodes=9.*set Plan\(quorum"),
        (lambda: flower.FedAvg(evaluate_metrics_aggr_fn=lambda *_: MetricRecord()), "evaluate_metrics_aggr_fn"),
        (lambda: flower.FedProx(proximal_mu=0.1), r"use Proximal\(mu\) in build"),
        (lambda: flower.FedXgbBagging(), "trees"),
        (lambda: flower.FedXgbCyclic(), "trees"),
        (lambda: flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 2), "sampling"),
        (lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(flower.FedAvg(), 0.1, 9), "sampling"),
        (lambda: flower.DifferentialPrivacyClientSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 2), "clipping"),
        (lambda: flower.DifferentialPrivacyClientSideAdaptiveClipping(flower.FedAvg(), 0.1, 9), "clipping"),
        (lambda: "FedAvg", "got a str"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_wrapped(make, complaint):
    with pytest.raises(ConfigError, match=complaint):
        FlowerStrategy(make())


def test_every_strategy_of_flower_is_either_tried_above_or_refused():
    known = {name for name in flower.__all__ if name not in ("Strategy", "Result")}
    tried = {"FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg"}
    tried |= {"Krum", "MultiKrum", "Bulyan", "QFedAvg"}
    refused = {"FedProx", "FedXgbBagging", "FedXgbCyclic"} | {name for name in known if name.startswith("Differential")}
    assert tried | refused == known


def test_odd_replies_are_refused():
    strategy = FlowerStrategy(flower.FedAvg())
    strategy.begin(0, {"w": torch.zeros(2)})
    for state in ({"v": torch.zeros(2)}, {"w": torch.zeros(1)}, {"w": torch.zeros(2), "v": torch.zeros(2)}):
        with pytest.raises(InputError, match="site 'a' replied with other names or shapes"):
            strategy.add(update(state))
    with pytest.raises(InputError, match="weight nan"):
        strategy.add(update({"w": torch.zeros(2)}, weight=float("nan")))
    strategy.add(update({"w": torch.zeros(2)}, weight=0.0))
    with pytest.raises(TrainingError, match="weigh 0 in total"):
        strategy.finish()


# -- strategies of one's own


class Remembering(flower.FedAvg):
    """Keeps arrays in every way there is."""

    def __init__(self):
        super().__init__()
        self.one = np.zeros(())
        self.rows: list = []
        self.named: dict = {}
        self.record = ArrayRecord()
        self.settings, self.mixed = {"rate": 0.1}, [np.zeros(1), "x"]

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.one += 1
        found = {name: array.numpy() for name, array in arrays.items()}
        self.rows = [*self.rows, *found.values()]
        self.named, self.record = found, arrays
        total = self.one + sum(row.sum() for row in self.rows)
        return ArrayRecord({n: Array(np.asarray(v + total, dtype=v.dtype)) for n, v in found.items()}), metrics


def test_whatever_a_strategy_remembers_in_arrays_is_kept_in_its_order():
    state, given = {name: torch.randn(2) for name in "zyxa/b"}, Remembering()
    first, second = FlowerStrategy(given), FlowerStrategy(given)
    half = list(rounds(first, state, range(3)))[-1]
    kept = first.state_dict()
    assert {name.split("/")[1] for name in kept} == {"one", "rows", "named", "record"}
    second.load_state_dict(dict(sorted(kept.items())))
    assert [list(one) for one in (first.state_dict(), second.state_dict())] == [list(kept)] * 2
    for one, other in zip(rounds(first, half, [3, 4]), rounds(second, half, [3, 4]), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in state)
    assert given.one == 0
    with pytest.raises(ConfigError, match="which a FedAdam does not remember"):
        FlowerStrategy(flower.FedAdam()).load_state_dict(kept)
    with pytest.raises(ConfigError, match="'scale', which"):
        second.load_state_dict({"scale": torch.zeros(1)})


class Strict(flower.FedAvg):
    """Looks at what it is given."""

    def aggregate_train(self, server_round, replies):
        assert server_round == 1
        nodes = [reply.metadata.src_node_id for reply in replies]
        assert all(one < other for one, other in pairwise(nodes))
        assert [list(reply.content["arrays"]) for reply in replies] == [["z", "b", "a"]] * len(replies)
        assert {array.dtype for reply in replies for array in reply.content["arrays"].values()} == {"float32"}
        assert [reply.content["metrics"]["num-examples"] for reply in replies] == list(WEIGHTS)
        assert {frozenset(reply.content["metrics"]) for reply in replies} == {frozenset({"train_loss", "num-examples"})}
        return super().aggregate_train(server_round, replies)


def test_replies_come_in_the_order_of_the_sites_and_the_parameters():
    strategy, state = FlowerStrategy(Strict()), start()
    strategy.begin(0, state)
    for i, each in enumerate(trained(state, 0)):
        turned = dict(reversed(list(each.state.items())))
        strategy.add(update(turned, site=each.member.site, weight=each.weight, metrics={**each.metrics, f"only{i}": 1}))
    assert list(strategy.finish()[0]) == list(state)


def test_numbers_of_ones_own_reach_the_history():
    def worst(records, weighted_by):
        assert weighted_by == "num-examples"
        losses = [record["metrics"]["train_loss"] for record in records]
        return MetricRecord({"worst": max(losses), "all": losses})

    for given, wanted in ((flower.FedAvg(train_metrics_aggr_fn=worst), {"worst": 4.5}), (flower.FedAvg(), {})):
        strategy, state = FlowerStrategy(given), start()
        strategy.begin(0, state)
        for each in trained(state, 0):
            strategy.add(each)
        assert strategy.finish()[1] == wanted


class Sending(flower.FedAvg):
    """Gives the sites a setting, as a generator would."""

    def configure_train(self, server_round, arrays, config, grid):
        config["rate"] = 0.1
        yield from super().configure_train(server_round, arrays, config, grid)


class Asking(flower.FedAvg):
    """Sends messages where only settings are made."""

    def configure_train(self, server_round, arrays, config, grid):
        return grid.send_and_receive(super().configure_train(server_round, arrays, config, grid))


def test_a_strategy_that_talks_to_the_sites_is_refused():
    with pytest.raises(ConfigError, match="sends the sites the setting 'rate'"):
        FlowerStrategy(Sending()).begin(0, start())
    with pytest.raises(TrainingError, match="sent messages while configuring"):
        FlowerStrategy(Asking()).begin(0, start())


class Returning(flower.FedAvg):
    """Returns what it was told to, or raises it."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def aggregate_train(self, server_round, replies):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result, None


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (None, "returned 0 parameters, the state has 1"),
        (ArrayRecord({"v": Array(np.zeros(2))}), "returned 1 parameters"),
        (ArrayRecord({"w": Array(np.zeros((1, 2)))}), r"'w' with the shape \(1, 2\)"),
        (ArrayRecord({"w": Array(np.array([0, np.nan]))}), "not finite"),
        (AggregationError("no luck"), "Returning failed: no luck"),
    ],
)
def test_what_is_no_state_is_refused(result, complaint):
    with pytest.raises(TrainingError, match=complaint):
        next(rounds(FlowerStrategy(Returning(result)), {"w": torch.zeros(2)}, [0]))
