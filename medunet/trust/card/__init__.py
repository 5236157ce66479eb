"""The papers that go with a bundle: model card, summaries, and the rules of its metadata."""
