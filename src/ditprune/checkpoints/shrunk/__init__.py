"""SMALLER DENSE MODELS: how does a module tree become smaller, in memory and as it is loaded?"""
