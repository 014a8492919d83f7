"""Receipts: what an audit was about as hashes, written once and checked again."""
