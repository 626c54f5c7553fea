"""dgents"""
