"""placeholder"""
def saliency_mask(*a): raise NotImplementedError
