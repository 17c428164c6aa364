"""The regression gate: are the golden winners still as fast and as good as they were recorded?"""
