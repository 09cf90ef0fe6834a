"""The domain projects' tables: advice on held-out families beside what else could be advised, and what simple readers reach.

python -m benchmarks.landscapes --project federated
"""
