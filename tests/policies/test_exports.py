import policies


def test_policies_exports_exactly_its_contract() -> None:
    assert sorted(policies.__all__) == ["Mixture", "Order", "choose", "replay", "simulate"]
    assert all(callable(getattr(policies, name)) for name in policies.__all__)
